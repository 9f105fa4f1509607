"""Remove the units without which the loss of the whole model would change least, by its expansion at the weights: LLM-Pruner's measure.

    first:   score_u = sum over the entries w of the unit of |g w|
    second:  sum of |h w^2| / 2,      mixed:  sum of |g w - h w^2 / 2|

g is the mean over calibration rows of the gradient of the loss, h the mean of its square row by row, which stands for the second
derivative. The unit's entries are its rows of what writes it and its columns of what reads it. The loss is that of the next tokens, or of
labels where rows have them; else of labels that are drawn from what the model predicts itself.
Source: Ma, Fang and Wang (2023), arXiv 2305.11627, which judges ten rows, leaves some blocks at both ends whole, and heals with LoRA after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Space, Units
from thrifty.base.method import Paper
from thrifty.structure.base import GradientPruner, Seen, Slopes, View


@dataclass(frozen=True)
class TaylorUnits(GradientPruner):
    """Units by what the loss says. order: of the expansion."""

    name: ClassVar[str] = "taylor_units"
    paper: ClassVar[Paper | None] = Paper(
        "Ma, Fang and Wang", 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models", arxiv="2305.11627"
    )

    order: Literal["first", "second", "mixed"] = "first"

    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        return {
            units.space: self._experts(view, units, seen) if units.kind == "experts" else self._group(view, units, seen)
            for units in view.units
        }

    def _group(self, view: View, units: Units, seen: Seen) -> Float[Tensor, "count"]:
        total = torch.zeros(units.count)
        for member in (*view.rows(units), *view.columns(units)):
            assert member.linear is not None
            total += view.owned(self._worth(view, member.linear, seen), units, member).sum(1)
        return total

    def _experts(self, view: View, units: Units, seen: Seen) -> Float[Tensor, "count"]:
        total = torch.zeros(units.count)
        for linear in view.block.linears:
            if linear.expert is not None:
                total[linear.expert] += self._worth(view, linear.path, seen).sum()
        return total

    def _worth(self, view: View, path: str, seen: Seen) -> Float[Tensor, "out in"]:
        return worth(view.read(path), seen.slopes[path], self.order) if path in seen.slopes else torch.zeros_like(view.read(path))


def worth(weight: Float[Tensor, "out in"], slopes: Slopes, order: str) -> Float[Tensor, "out in"]:
    """What the loss would change by, about, without each entry."""
    if order == "first":
        return (slopes.mean * weight).abs()
    curved = slopes.square * weight.square() / 2
    return curved if order == "second" else (slopes.mean * weight - curved).abs()
