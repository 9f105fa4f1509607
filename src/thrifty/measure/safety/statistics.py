"""Two statistics of paired judgements: the exact test of McNemar, and the area under the receiver operating characteristic."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided probability of so unequal counts, or more so, where either change is as likely: binomial with 1/2."""
    total, least = lost + gained, min(lost, gained)
    tail = sum(math.comb(total, count) for count in range(least + 1)) / 2**total
    return min(1.0, 2 * tail)


def auroc(positive: Float[Tensor, "n"], negative: Float[Tensor, "m"]) -> float:
    """How often a score of the first is above one of the second; equal ones count half."""
    pairs = positive[:, None] - negative[None, :]
    return float(((pairs > 0).to(torch.float64) + 0.5 * (pairs == 0).to(torch.float64)).mean())
