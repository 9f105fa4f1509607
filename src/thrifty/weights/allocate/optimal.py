"""The choice for all parts of a model that loses least in sum within the budget.

    min over choice  sum_p loss[p, choice_p]   subject to   sum_p cost[p, choice_p] <= budget

Exact where the costs are multiples of one unit that is not too small, as bits of matrices are; else along the convex hulls of the curves,
with a bound on what that can lose (`thrifty.core.budget`). Losses are taken to add up, which is nearly so while they are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from thrifty.base.records import Curve, Share
from thrifty.core.budget import choose
from thrifty.weights.base import Sharing


@dataclass(frozen=True)
class Optimal(Sharing):
    """No hyperparameters."""

    name: ClassVar[str] = "optimal"

    def share(self, curves: Sequence[Curve], budget: float) -> Share:
        losses, costs = (torch.tensor([getattr(curve, what) for curve in curves], dtype=torch.float64) for what in ("losses", "costs"))
        found = choose(losses, costs, budget)
        return self.of(curves, found.options.tolist(), found.gap)
