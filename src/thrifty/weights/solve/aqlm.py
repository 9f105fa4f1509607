"""Additive codebooks fitted to the output error: codes, codebooks and scales in turn, each with the others as they are (AQLM).

    min over V of  tr((W - V) H (W - V)^T),    v_ij = s_i (C_1[k_ij1] + .. + C_M[k_ijM]),    H = gram + damping * mean(diag gram) * I

The target's codebooks are fitted with the root of diag(H) as importance. Each row starts from its nearest sums, or where that costs less
from what a sweep reaches: group after group is fixed, those with the largest inputs first, as if the groups to come were free to make up
for its error. Then codebooks take steps of conjugate gradients, scales have a closed form, and codes are searched group by group, the best
few sums of codewords being kept (beam search); the best state is returned. The published method has no sweep, keeps the beam over whole
rows, and moves codebooks and scales by Adam.
Source: Egiazarian, Panferov, Kuznedelev, Frantar, Babenko and Alistarh (2024), arXiv 2401.06118.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.codebooks.gram import Coded, fit_codebooks, fit_scales, held_codebooks, held_scale, search_codes, sweep_codes
from thrifty.core.finite import all_finite
from thrifty.core.linalg import row_forms
from thrifty.weights.base import Solver, Target
from thrifty.weights.target.additive import Additive


@dataclass(frozen=True)
class AQLM(Solver):
    """rounds: how often all three parts are fitted, at most. steps: of conjugate gradients a round. tolerance: stop when a round gains less
    than this share of the loss. damping: share of the mean diagonal that is added to the diagonal."""

    name: ClassVar[str] = "aqlm"
    paper: ClassVar[Paper] = Additive.paper

    rounds: Annotated[int, Field(ge=0, le=1000)] = 5
    steps: Annotated[int, Field(ge=1, le=1000)] = 8
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(rounds=2),)

    def accepts(self, target: Target) -> None:
        if not isinstance(target, Additive):
            raise InputError(f"aqlm fits codebooks, and {target.name} has none; use into: additive")

    def solve(self, problem: Problem, target: Target) -> Solution:
        if not isinstance(target, Additive):
            raise InputError(f"aqlm fits codebooks, and {target.name} has none; use into: additive")
        weight, gram = problem.weight.to(torch.float32), problem.gram.to(torch.float32)
        if not all_finite(gram):
            said = f"{problem.name}: the Gram matrix holds values that are not finite, so every group was rounded to the nearest sum"
            points = target.fit(weight)
            points.project(weight)
            return _solution(problem, target, points.coded, (said,), {})
        damped = gram.clone()
        damped.diagonal().add_(self.damping * (float(gram.diagonal().mean()) or 1.0))
        best = self._first(weight, damped, target)
        first = least = _loss(weight, damped, best)
        taken, now = 0, best
        while taken < self.rounds:
            taken += 1
            now = self._round(weight, damped, now, target.beam)
            before, loss = least, _loss(weight, damped, now)
            if loss < least:
                best, least = now, loss
            if loss > (1 - self.tolerance) * before:
                break
        return _solution(problem, target, best, (), {"rounds": float(taken), "start_loss": first})

    def _first(self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], target: Additive) -> Coded:
        """Of each row the better one of two starts with the same codebooks: the nearest sums, and what a sweep over the groups reaches."""
        points = target.fit(weight, gram.diagonal().sqrt())
        points.project(weight)
        nearest = points.coded
        swept = sweep_codes(weight, gram, nearest, target.beam)
        if swept is None:
            return nearest
        losses = [row_forms(weight - one.decode(), gram) for one in (nearest, swept)]
        return replace(nearest, codes=torch.where((losses[1] < losses[0])[:, None, None], swept.codes, nearest.codes))

    def _round(self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], now: Coded, beam: int) -> Coded:
        """Codebooks, scales and codes, one after the other."""
        found = fit_codebooks(weight, gram, now, self.steps)
        now = replace(found, codebooks=held_codebooks(found.codebooks))
        now = replace(now, scale=held_scale(fit_scales(weight, gram, now)))
        return search_codes(weight, gram, now, beam)


def _loss(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], now: Coded) -> float:
    return float(row_forms(weight - now.decode(), gram).sum())


def _solution(problem: Problem, target: Additive, found: Coded, warnings: tuple[str, ...], details: dict[str, float]) -> Solution:
    encoded = target.encode(found)
    values = encoded.decode().to(problem.weight.dtype)
    row_loss = row_forms(problem.weight - values, problem.gram.to(values.dtype)).clamp_min(0)
    return Solution(values, encoded, row_loss, warnings=warnings, details=details)
