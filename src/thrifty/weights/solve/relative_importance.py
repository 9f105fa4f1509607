"""Relative importance: a weight counts by its share of its row and of its column, and by how large its input is.

    keep the entries with the largest  ( |w_ij| / sum_k |w_ik|  +  |w_ij| / sum_k |w_kj| ) ||x_j||^power,    the others become zero

The shares keep whole inputs and outputs of small weights from being pruned away, which magnitude and Wanda do. What stays keeps its value.
Source: Zhang, Bai, Lin, Zhao, Hou and Cannistraci (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.linalg import row_forms
from thrifty.core.masks import apply_mask
from thrifty.weights.base import Solver, Target, check_masks

LEAST = 1e-15
"""Share of the largest score below which scores do not fall: counts stay exact where weights are zero, or inputs were never seen."""


@dataclass(frozen=True)
class RelativeImportance(Solver):
    """power: of the input's norm; 0 looks at the weights alone."""

    name: ClassVar[str] = "relative_importance"
    paper: ClassVar[Paper] = Paper(
        "Zhang, Bai, Lin, Zhao, Hou, Cannistraci",
        2024,
        "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
    )

    power: Annotated[float, Field(ge=0, le=4)] = 0.5

    @property
    def calibrated(self) -> bool:
        return self.power > 0

    @property
    def joint_rows(self) -> bool:
        return True

    def accepts(self, target: Target) -> None:
        check_masks(target, self.name)

    def solve(self, problem: Problem, target: Target) -> Solution:
        scores = importance(problem.weight, problem.gram.diagonal().to(problem.weight.dtype), self.power)
        scores = (scores / scores.max().clamp_min(torch.finfo(scores.dtype).tiny)).clamp_min(LEAST)
        kept = target.fit(scores).project(scores) != 0
        values = apply_mask(problem.weight, kept)
        loss = row_forms(problem.weight - values, problem.gram).clamp_min(0)
        return Solution(values, target.fit(values).encode(values), loss)


def importance(weight: Float[Tensor, "out in"], energy: Float[Tensor, "in"], power: float) -> Float[Tensor, "out in"]:
    """The score of each entry, not negative; energy: mean square of each input. Rows and columns of zeros score nothing."""
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny
    shares = size / size.sum(1, keepdim=True).clamp_min(tiny) + size / size.sum(0, keepdim=True).clamp_min(tiny)
    return shares * energy.clamp_min(0).pow(power / 2)
