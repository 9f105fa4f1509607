"""Progressive rounding: onto a fine grid first, and from there into the target.

    U = argmin over the grid `through` of tr((W - U) G (W - U)^T),   V = argmin over the target of tr((U - V) G (U - V)^T)

The fine grid keeps nearly all of the model, and cuts the tails off that a coarse one would have to reach for; what trains afterwards starts
from there. It is the first half of UPQ, whose second is `distill`. By itself it does not lose less than one step would.
Source: Lee, Shin, Kim, You and Chen (2025), arXiv 2506.09104.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.linalg import row_forms
from thrifty.weights.base import Solver, Target
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.int import Int


@dataclass(frozen=True)
class Progressive(Solver):
    """by: the solver of both steps. through: the fine grid."""

    name: ClassVar[str] = "progressive"
    paper: ClassVar[Paper] = Paper(
        "Lee, Shin, Kim, You, Chen",
        2025,
        "Unifying Block-wise PTQ and Distillation-based QAT for Progressive Quantization toward 2-bit Instruction-Tuned LLMs",
        "2506.09104",
    )

    by: Solver = OBS()
    through: Target = Int()

    def accepts(self, target: Target) -> None:
        self.by.accepts(self.through)
        self.by.accepts(target)

    @property
    def calibrated(self) -> bool:
        return self.by.calibrated

    def solve(self, problem: Problem, target: Target) -> Solution:
        self.through.check(*problem.weight.shape, problem.name)
        fine = self.by.solve(problem, self.through)
        coarse = self.by.solve(replace(problem, weight=fine.values), target)
        loss = row_forms(problem.weight - coarse.values, problem.gram).clamp_min(0)
        return replace(coarse, row_loss=loss, column_loss=None, warnings=(*fine.warnings, *coarse.warnings))
