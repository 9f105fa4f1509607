"""The nearest point: every entry is decided on its own.

    min over V in the target of  sum_ij c_j (w_ij - v_ij)^2,    c_j = 1, or gram_jj with `weighted`

On a grid this is rounding to nearest; on a mask it is magnitude pruning, with `weighted` Wanda (Sun, Liu, Bair and Kolter 2023,
arXiv 2306.11695).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.base.records import Problem, Solution
from thrifty.core.linalg import row_forms
from thrifty.weights.base import Solver, Target


@dataclass(frozen=True)
class Round(Solver):
    """weighted: an error counts by how large its input is on calibration data."""

    name: ClassVar[str] = "round"

    weighted: bool = False

    @property
    def calibrated(self) -> bool:
        return self.weighted

    def solve(self, problem: Problem, target: Target) -> Solution:
        importance = problem.gram.diagonal() if self.weighted else None
        points = target.fit(problem.weight, importance)
        values = points.project(problem.weight)
        loss = row_forms(problem.weight - values, problem.gram).clamp_min(0)
        return Solution(values, points.encode(values), loss)
