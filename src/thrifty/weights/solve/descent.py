"""Coordinate descent on the output error: one entry, or one scale, at a time takes its best value, until none can be improved.

    min over V in the target of  f(V) = tr((W - V) G (W - V)^T)
    an entry:  v_ij <- the point nearest to  v_ij + ((W - V) G)_ij / G_jj        a scale:  the best one for the codes as they are

Entries of one input are set for all rows at once. Every step keeps the value that it finds where it has none better, so none raises f, and
what is returned costs no more than the result of `obs` on the same grid. Where a target has scales or zero points they are fitted to f in
between, exactly as their container holds them; `rounds` sweeps of `obs` on the grids found so far lead there quickly, and `sweeps` of
descent follow the last of them. Entries that a mask has set to zero stay there; the others descend to the least squares for that mask.
Sources: Behdin, Acharya, Gupta, Song, Zhu, Keerthi and Mazumder (2023), QuantEase, arXiv 2309.01885; Nair and Suggala (2024), CDQuant,
arXiv 2406.17542. Fitting the scales in between and the rounds are additions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.linalg import row_forms, seen_diagonal
from thrifty.weights.base import Points, Solver, Target
from thrifty.weights.solve.obs import OBS, PANEL


@dataclass(frozen=True)
class Descent(Solver):
    """rounds: sweeps of `obs`, each on the grids that the one before led to. sweeps: largest number of sweeps of descent after them.

    damping: see `obs`.
    """

    name: ClassVar[str] = "descent"
    paper: ClassVar[Paper] = Paper(
        "Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder",
        2023,
        "QuantEase: Optimization-based Quantization for Language Models",
        "2309.01885",
    )

    rounds: Annotated[int, Field(ge=1, le=100)] = 4
    sweeps: Annotated[int, Field(ge=1, le=1000)] = 8
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    def solve(self, problem: Problem, target: Target) -> Solution:
        weight, gram = problem.weight, problem.gram.to(problem.weight.dtype)
        start = OBS(not target.run, self.damping)
        points = target.fit(weight, gram.diagonal().sqrt())  # as `obs` fits them
        reached = start.reach(weight, gram, points, target.run)
        if reached is None:
            return start.solve(problem, target)
        warnings = start.warnings(problem.name, reached)
        first = Solution(reached.values, points.encode(reached.values), reached.row_loss, reached.column_loss, warnings)
        state = _Descent(weight, gram, points, reached.values)
        # Masks stay as they were chosen, and where nothing is shared the same sweep would come again.
        for _ in range(0 if points.adaptive or not state.refit() else self.rounds - 1):
            state.sweep()
            state.refit()
            again = start.reach(weight, gram, state.points, target.run)
            if again is not None:
                state.values = again.values.T.contiguous()
                state.refit()
        taken = 0
        while taken < self.sweeps:
            taken += 1
            if not state.sweep() | state.refit():
                break
        return self._less(first, state, taken)

    def _less(self, first: Solution, state: _Descent, taken: int) -> Solution:
        """The better of where it started and where it ended."""
        details = {"sweeps": float(taken), "start_loss": first.loss}
        values = state.values.T.contiguous()
        row_loss = row_forms((state.weight - state.values).T, state.gram).clamp_min(0)
        if not float(row_loss.sum()) < first.loss:
            return replace(first, details=details)
        return replace(first, values=values, encoded=state.points.encode(values), row_loss=row_loss, details=details)


class _Descent:
    """A point on its way down. Matrices are transposed, [in, out], so that an input is a contiguous row."""

    def __init__(
        self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], points: Points, values: Float[Tensor, "out in"]
    ) -> None:
        self.weight, self.values, self.gram, self.points = weight.T.contiguous(), values.T.contiguous(), gram, points
        # Steps of inputs that were hardly seen are bounded: rounding errors of the slope would be all that moved their entries.
        curvature = seen_diagonal(gram)
        self.inverse: list[float] = torch.where(curvature > 0, curvature.reciprocal(), 0.0).tolist()

    def refit(self) -> bool:
        """Fit what entries share; whether anything changed."""
        points, values = self.points.refit(self.values.T, self.weight.T, self.gram)
        if points is self.points:
            return False
        before, self.points, self.values = self.values, points, values.T.contiguous()
        return not torch.equal(before, self.values)

    def sweep(self) -> bool:
        """Set the entries of each input to their best values, the others being as they are; whether anything changed."""
        error, before = self.weight - self.values, self.values.clone()
        for start in range(0, len(self.inverse), PANEL):
            stop = min(start + PANEL, len(self.inverse))
            self._panel(start, stop, self.gram[start:stop] @ error, error)
        return not torch.equal(before, self.values)

    def _panel(self, start: int, stop: int, slope: Float[Tensor, "n out"], error: Float[Tensor, "in out"]) -> None:
        """Inputs start .. stop one by one; slope: gram @ error of these inputs."""
        found = torch.empty_like(slope[0])
        for place, index in enumerate(range(start, stop)):
            value = self.values[index]
            aim = torch.add(value, slope[place], alpha=self.inverse[index])
            self.points.snap(aim, index, found)
            chosen = torch.where((found - aim).abs_() < (value - aim).abs_(), found, value)
            slope[place + 1 :].addr_(self.gram[index, index + 1 : stop], value - chosen)
            torch.sub(self.weight[index], chosen, out=error[index])
            value.copy_(chosen)
