"""Remove the units whose weights, each times the size of its usual input, are smallest: Wanda's measure summed over a group.

    score_u = sum over the matrices of the group of ||W_u * c||_2

W_u are rows of what writes the unit and columns of what reads it, c_j is the root mean square of input j over the calibration tokens. An
expert is summed over the tokens that chose it, so that what few choose counts less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Space, Units
from thrifty.base.method import Paper
from thrifty.structure.base import Pruner, Seen, View


@dataclass(frozen=True)
class WandaUnits(Pruner):
    """Units by their weights and the inputs these meet."""

    name: ClassVar[str] = "wanda_units"
    paper: ClassVar[Paper | None] = Paper(
        "Sun, Liu, Bair and Kolter", 2023, "A Simple and Effective Pruning Approach for Large Language Models", arxiv="2306.11695"
    )

    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        return {units.space: _experts(view, units, seen) if units.kind == "experts" else _group(view, units, seen) for units in view.units}


def _group(view: View, units: Units, seen: Seen) -> Float[Tensor, "count"]:
    total = torch.zeros(units.count)
    for member in (*view.rows(units), *view.columns(units)):
        assert member.linear is not None
        weighed = view.read(member.linear) * _sizes(view, member.linear, seen)
        total += view.owned(weighed, units, member).norm(dim=1)
    return total


def _sizes(view: View, path: str, seen: Seen) -> Float[Tensor, "in"]:
    """How large each input of a linear is; 1 for one whose inputs are not seen."""
    for stage in view.block.stages:
        if any(linear.path == path for linear in stage.linears):
            return seen.size(stage.reads)
    space = next((space for space in view.block.spaces if path in space.consumers), None)
    return torch.ones(view.linear(path).in_features) if space is None else seen.size(space)


def _experts(view: View, units: Units, seen: Seen) -> Float[Tensor, "count"]:
    total = torch.zeros(units.count)
    for stage in view.block.stages:
        for linear in stage.linears:
            if linear.expert is not None:
                share = seen.inputs[stage.reads.name].tokens if stage.reads.name in seen.inputs else 0
                total[linear.expert] += (view.read(linear.path) * seen.size(stage.reads)).norm() * share**0.5
    return total
