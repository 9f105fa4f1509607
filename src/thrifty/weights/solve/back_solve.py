"""Back-solving: another solver says which weights stay, and what stays takes the values that lose least.

    min over V, zero where `by` left zeros, of  tr((W - V) G (W - V)^T) + damping ||V - V_by||^2

Each row is a least-squares problem of its own in the inputs that it keeps; all of them are solved together by conjugate gradients, to a
small residual instead of the published ten steps. The loss is never above that of `by`. It is the last step of ALPS, whose search for the
mask itself is `alps`. Where weights shall lie on a grid, too, put a step that quantizes after this one: it keeps the zeros.
Source: Meng, Behdin, Wang and Mazumder (2024), arXiv 2406.07831.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.back_solve import back_solve
from thrifty.core.linalg import row_forms
from thrifty.weights.base import Solver, Target, check_masks
from thrifty.weights.solve.obs import OBS


@dataclass(frozen=True)
class BackSolve(Solver):
    """by: the solver that chooses what stays. damping: share of the mean diagonal that holds the weights where `by` left them.
    steps, tolerance: of conjugate gradients; a row is done when its residual is this part of the first."""

    name: ClassVar[str] = "back_solve"
    paper: ClassVar[Paper] = Paper(
        "Meng, Behdin, Wang, Mazumder",
        2024,
        "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        "2406.07831",
    )

    by: Solver = OBS()
    damping: Annotated[float, Field(ge=0, le=1)] = 0.01
    steps: Annotated[int, Field(ge=1, le=10_000)] = 100
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-4

    def accepts(self, target: Target) -> None:
        check_masks(target, self.name)
        self.by.accepts(target)

    @property
    def joint_rows(self) -> bool:
        return self.by.joint_rows

    def solve(self, problem: Problem, target: Target) -> Solution:
        weight, gram = problem.weight, problem.gram.to(problem.weight.dtype)
        chosen = self.by.solve(problem, target)
        damping = self.damping * float(gram.diagonal().mean())
        found = back_solve(weight, gram, chosen.values, chosen.values != 0, damping, self.steps, self.tolerance)
        loss = row_forms(weight - found.values, gram).clamp_min(0)
        less = loss < chosen.row_loss  # a row that rounding errors made worse stays as it was, and so does one whose loss is no number
        values = torch.where(less[:, None], found.values, chosen.values)
        details = {**chosen.details, "back_solve_steps": float(found.steps)}
        loss = torch.where(less, loss, chosen.row_loss)
        return replace(chosen, values=values, encoded=target.fit(values).encode(values), row_loss=loss, column_loss=None, details=details)
