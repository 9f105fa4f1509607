"""Activation-aware scaling: channels with large inputs get larger weights, so that rounding hurts them less.

    s = m^a / sqrt(max(m^a) min(m^a)),   m_j = mean |x_j|,   a in {0, 1/20, ..., 19/20}
    min over a of  sum over consumers of tr(D G D^T),   D = W - Q(W diag(s)) diag(1/s),   G the mean of x x^T

The error on the calibration inputs is exact through the Gram matrix, so no forward pass is repeated for the search. The search rounds to
the nearest point, and looks at a sample of rows; its winner must then beat a = 0 twice, else the space is left as it is: rounded on all
rows, and on the sample with what really comes next (`gptq`, say, which makes up for much of what scaling would gain).
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
from thrifty.base.records import Problem
from thrifty.core.fold import tie
from thrifty.core.linalg import row_forms
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Target, Transform, Treatment, solve

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
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, treatment: Treatment | None
    ) -> Rewrite | None:
        if treatment is None or statistics.tokens == 0:
            return None
        weight, gram, target = torch.cat(weights), statistics.gram, treatment.target
        sample = weight[:: -(-weight.shape[0] // SEARCHED_ROWS)]
        mean = tie(statistics.absolute_mean, space.repeat, space.unit_size, "mean")
        scales = [balanced(mean, step / self.grid) for step in range(self.grid)]
        losses = [scaled_loss(sample, gram, scale, target) for scale in scales]
        best, none = scales[min(range(self.grid), key=losses.__getitem__)], scales[0]
        if scaled_loss(weight, gram, best, target) >= scaled_loss(weight, gram, none, target):
            return None
        if solved_loss(sample, gram, best, treatment) >= solved_loss(sample, gram, none, treatment):
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


def solved_loss(
    weight: Float[Tensor, "out width"], gram: Float[Tensor, "width width"], scale: Float[Tensor, "width"], treatment: Treatment
) -> float:
    """The same when `weight * scale` is treated as it will be."""
    scaled = gram / (scale[:, None] * scale[None, :])
    return solve(Problem(weight * scale, scaled, tokens=0), treatment).loss
