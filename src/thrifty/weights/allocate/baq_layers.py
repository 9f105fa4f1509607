"""Bits for the matrices of a model in closed form, so that each weight costs the same (BAQ, over layers).

    b_l = R + (1 / theta) log2(s_l / GM(s)),   s_l = L_l / n_l,   GM the geometric mean weighed by n_l

L_l is the loss of matrix l, of n_l weights, at the option whose rate is nearest to the budget's mean R. That minimizes sum_l L_l(b_l) at
a mean of R bits if losses fall like 2^(-theta b), theta = 2 for evenly spaced grids; the published 1.95 is for the inputs of one matrix,
and kept. Each matrix takes the option of the nearest rate (cost over n_l), and the constant term is the largest with which the sum stays
within the budget. Unlike `optimal` it looks at one point of every curve.
Source: Zhang, Wang, Lasaulce and Debbah (2025), arXiv 2506.05664; over inputs of a matrix it is `baq`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.base.records import Curve, Share
from thrifty.weights.allocate.baq import BAQ
from thrifty.weights.base import Sharing

SMALLEST_LOSS = 1e-8


@dataclass(frozen=True)
class BAQLayers(Sharing):
    """theta: how fast the loss of a matrix falls with its bits, 2^(-theta b)."""

    name: ClassVar[str] = "baq_layers"
    paper: ClassVar[Paper] = BAQ.paper

    theta: Annotated[float, Field(gt=0, le=4)] = 1.95

    def share(self, curves: Sequence[Curve], budget: float) -> Share:
        sizes = torch.tensor([curve.size for curve in curves], dtype=torch.float64)
        costs = torch.tensor([curve.costs for curve in curves], dtype=torch.float64)
        losses = torch.tensor([curve.losses for curve in curves], dtype=torch.float64)
        costs, order = costs.sort(dim=1, stable=True)
        rates = costs / sizes[:, None]
        middle = (rates - budget / float(sizes.sum())).abs().argmin(1, keepdim=True)
        wanted = layer_bits(losses.gather(1, order).gather(1, middle)[:, 0], sizes, 0.0, self.theta)
        taken = _rounded(wanted, rates, costs, budget)
        return self.of(curves, order.gather(1, taken[:, None])[:, 0].tolist())


def layer_bits(losses: Float[Tensor, "parts"], sizes: Float[Tensor, "parts"], mean_bits: float, theta: float) -> Float[Tensor, "parts"]:
    """The closed form before any rounding: the mean over all weights is `mean_bits` exactly."""
    each = losses.to(torch.float64) / sizes
    if not bool((each > 0).any()):
        return torch.full(losses.shape, mean_bits, dtype=torch.float64)
    wanted = torch.log2(each + SMALLEST_LOSS * float(each.mean())) / theta
    return mean_bits + wanted - float((wanted * sizes).sum() / sizes.sum())


def _rounded(wanted: Tensor, rates: Tensor, costs: Tensor, budget: float) -> Tensor:
    """[parts] position of the rate nearest to `wanted` plus the largest constant with which the costs stay within the budget.

    As the constant grows, matrices pass from one rate to the next where it reaches the middle between them: in that order they are paid.
    """
    left = budget * (1 + 1e-12) - float(costs[:, 0].sum())
    if left < 0:
        raise InputError(f"a budget of {budget:g} is too small: the cheapest options cost {float(costs[:, 0].sum()):g} together")
    turns = (rates[:, 1:] + rates[:, :-1]) / 2 - wanted[:, None]
    order = turns.flatten().argsort(stable=True)
    paid = (costs.diff(dim=1).flatten()[order].cumsum(0) <= left).cumprod(0).bool()
    passed = torch.zeros(turns.numel(), dtype=torch.int64)
    passed[order[paid]] = 1
    return passed.reshape(turns.shape).sum(1)
