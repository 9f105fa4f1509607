"""Activation-aware scaling: channels with large inputs get larger weights, so that rounding hurts them less.

    s = m^a / sqrt(max(m^a) min(m^a)),   m_j = mean |x_j|,   a in {0, 1/20, ..., 19/20}
    min over a of  sum over consumers of tr(D G D^T),   D = W - Q(W diag(s)) diag(1/s),   G the mean of x x^T

The error on the calibration inputs is exact through the Gram matrix, so no forward pass is repeated for the search. The search looks at a
sample of rows; its winner must then beat a = 0 (plain rounding) on all of them, else the space is left as it is.
Source: Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han (2023), arXiv 2306.00978.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.base.method import Need, Paper
from thrifty.base.records import Rewrite
from thrifty.core.fold import tie
from thrifty.core.linalg import row_forms
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Target, Transform

SEARCHED_ROWS = 512
"""Rows of all consumers together that the search looks at."""


@dataclass(frozen=True)
class AWQ(Transform):
    """grid: exponents that are tried, a = 0 among them."""

    name: ClassVar[str] = "awq"
    paper: ClassVar[Paper] = Paper(
        "Lin et al.", 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", "2306.00978"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"gram", "absolute_mean"})

    grid: Annotated[int, Field(ge=2, le=200)] = 20

    def rewrite(
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, target: Target | None
    ) -> Rewrite | None:
        if target is None or statistics.tokens == 0:
            return None
        weight, gram = torch.cat(weights), statistics.gram
        sample = weight[:: -(-weight.shape[0] // SEARCHED_ROWS)]
        mean = tie(statistics.absolute_mean, space.repeat, space.unit_size, "mean")
        scales = [balanced(mean, step / self.grid) for step in range(self.grid)]
        losses = [scaled_loss(sample, gram, scale, target) for scale in scales]
        best = scales[min(range(self.grid), key=losses.__getitem__)]
        if scaled_loss(weight, gram, best, target) >= scaled_loss(weight, gram, scales[0], target):
            return None
        return Rewrite(space, best)


def balanced(mean: Float[Tensor, "width"], exponent: float) -> Float[Tensor, "width"]:
    """mean^exponent with the geometric middle of its range at 1; channels that never spoke keep 1."""
    alive = mean > 0
    if not bool(alive.any()):
        return torch.ones_like(mean)
    raised = torch.where(alive, mean, mean[alive].min()).pow(exponent)
    scale = raised / (raised.max() * raised.min()).sqrt()
    return torch.where(alive, scale, torch.ones_like(scale))


def scaled_loss(
    weight: Float[Tensor, "out width"], gram: Float[Tensor, "width width"], scale: Float[Tensor, "width"], target: Target
) -> float:
    """tr(D G D^T) when `weight * scale` is rounded to the target and scaled back."""
    scaled = weight * scale
    points = target.fit(scaled, gram.diagonal() / scale.square())
    return float(row_forms(weight - points.project(scaled) / scale, gram).sum())
