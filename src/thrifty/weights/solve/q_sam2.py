"""Recalibrated weights: what the inputs never ask for is taken out before the solver rounds, so that less is left to round.

    W' = W G (G + r d I)^-1,   d = tr(G) / in,   then V by a solver from W', judged against W:  tr((W - V) G (W - V)^T)

W' is the matrix of least norm whose outputs on the calibration inputs stay (r = 0) or hardly change. Each ridge r is tried whose loss of
the float model, expected on inputs that were not seen, is within `bound`. The one is taken with the least loss after rounding, what unseen
inputs are expected to lose more of the float model added; or W itself where none is better. The more of the space the inputs leave out,
the more is gained; where they fill it, r alone decides.
The paper's training goes on from W': `distill` with `ends: statistics` learns where grids of weights, and fixed ones of inputs, end.
Source: Farronato, Scheidegger, Rigotti, Malossi, Magno and Qin (2025), arXiv 2506.09782; the guard is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.linalg import row_forms
from thrifty.core.shrink import Spectrum
from thrifty.weights.base import Solver, Target
from thrifty.weights.solve.round import Round


@dataclass(frozen=True)
class QSAM2(Solver):
    """by: the solver after the recalibration. ridges: what is tried, in units of the mean energy of an input.

    bound: the share of the output's energy that the float model may lose by it.
    """

    name: ClassVar[str] = "q_sam2"
    paper: ClassVar[Paper] = Paper(
        "Farronato, Scheidegger, Rigotti, Malossi, Magno, Qin",
        2025,
        "Q-SAM2: Accurate Quantization for Segment Anything Model 2",
        "2506.09782",
    )

    by: Solver = Round()
    ridges: tuple[Annotated[float, Field(ge=0, le=10)], ...] = (0.0001, 0.001, 0.01)
    bound: Annotated[float, Field(ge=0, le=1)] = 0.01

    def accepts(self, target: Target) -> None:
        self.by.accepts(target)

    def solve(self, problem: Problem, target: Target) -> Solution:
        plain = self.by.solve(problem, target)
        if not problem.tokens:
            return plain
        best, least = plain, plain.loss
        spectrum, energy = Spectrum.of(problem.gram, problem.tokens), float(row_forms(problem.weight, problem.gram).sum())
        for ridge in self.ridges:
            seen, expected = spectrum.lost(problem.weight, ridge)
            if expected > self.bound:
                continue
            shrunk = spectrum.shrink(problem.weight, ridge)
            found = self.by.solve(replace(problem, weight=shrunk), target)
            loss = row_forms(problem.weight - found.values, problem.gram).clamp_min(0)
            total = float(loss.sum()) + (expected - seen) * energy
            if total < least:
                details = {**found.details, "ridge": ridge, "float_error": expected}
                best, least = replace(found, row_loss=loss, column_loss=None, details=details, latent=shrunk), total
        return best
