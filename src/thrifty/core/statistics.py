"""What calibration remembers of a space: a sum that can be merged, so it runs on one core, resumes, and spreads over machines.

`Statistics` is a monoid: `empty(width)` is its zero and `merge` adds two partial sums. Merging happens in the order of the sample ids,
so the result does not depend on who computed which part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.fast_gram import sums
from thrifty.core.rewrite import Rewrite


@dataclass(frozen=True)
class Statistics:
    """Sums over the inputs x of one space.

    tokens: how many inputs were seen. gram_sum: [width, width] sum of x x^T, float32.
    absolute_sum, value_sum: [width] sums of |x| and of x, float32. low, high: [width] smallest and largest x; infinite, the wrong way
    round, where nothing was seen.
    """

    tokens: int
    gram_sum: Float[Tensor, "width width"]
    absolute_sum: Float[Tensor, "width"]
    value_sum: Float[Tensor, "width"]
    low: Float[Tensor, "width"]
    high: Float[Tensor, "width"]

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Statistics:
        """The zero: nothing seen."""
        zeros = torch.zeros(width, device=device)
        return cls(0, torch.zeros(width, width, device=device), zeros, zeros.clone(), zeros + torch.inf, zeros - torch.inf)

    @classmethod
    def of(cls, inputs: Float[Tensor, "*rows width"]) -> Statistics:
        """The statistics of one batch of inputs; sums are taken in float32."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if rows.shape[0] == 0:
            return cls.empty(rows.shape[1], rows.device)
        return cls._with_native_products(rows) or cls._in_plain_torch(rows)

    @classmethod
    def _with_native_products(cls, rows: Float[Tensor, "n width"]) -> Statistics | None:
        found = sums(rows)
        return None if found is None else cls(rows.shape[0], **found._asdict())

    @classmethod
    def _in_plain_torch(cls, given: Float[Tensor, "n width"]) -> Statistics:
        rows = given.to(torch.float32)
        # torch.aminmax along the rows takes several times as long as both of these.
        low, high = rows.amin(0), rows.amax(0)
        return cls(rows.shape[0], _gram(rows, given.dtype), rows.abs().sum(0), rows.sum(0), low, high)

    def merge(self, other: Statistics) -> Statistics:
        """Both batches together."""
        return Statistics(
            self.tokens + other.tokens,
            self.gram_sum + other.gram_sum,
            self.absolute_sum + other.absolute_sum,
            self.value_sum + other.value_sum,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    @property
    def gram(self) -> Float[Tensor, "width width"]:
        """Mean of x x^T; zero where nothing was seen."""
        return self.gram_sum / max(self.tokens, 1)

    @property
    def absolute_mean(self) -> Float[Tensor, "width"]:
        """Mean of |x|."""
        return self.absolute_sum / max(self.tokens, 1)

    @property
    def absolute_max(self) -> Float[Tensor, "width"]:
        """Maximum of |x|; zero where nothing was seen."""
        return torch.maximum(-self.low, self.high).clamp_min(0)

    @property
    def mean(self) -> Float[Tensor, "width"]:
        """Mean of x."""
        return self.value_sum / max(self.tokens, 1)

    def under(self, rewrite: Rewrite) -> Statistics:
        """The statistics of the rewritten space; what does not follow from what is known is NaN."""
        unknown = 1.0 if rewrite.by_channel else math.nan
        ends = (rewrite.of(end) if rewrite.turn is None else end * math.nan for end in (self.low, self.high))
        return Statistics(
            self.tokens,
            rewrite.under(self.gram_sum) if rewrite.shift is None else rewrite.under(self.gram, self.mean) * self.tokens,
            self.absolute_sum / rewrite.scale * unknown,
            rewrite.of(self.mean) * self.tokens,
            *ends,
        )


PANEL = 256
"""Columns of a product of rows with themselves that are worked out at a time: what lies on the other side of the diagonal is copied."""


def _gram(rows: Float[Tensor, "n width"], dtype: torch.dtype) -> Float[Tensor, "width width"]:
    """rows^T rows in float32.

    Values that came from bfloat16 keep all their bits in the processor's bfloat16 multipliers, which add up in float32: the products stay
    exact and the call takes a third of the time where torch's library uses those multipliers, which is where they multiply tiles (AMX).
    """
    if dtype != torch.bfloat16 or rows.device.type != "cpu":
        return _with_itself(rows)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return _with_itself(rows)
    finally:
        torch.set_float32_matmul_precision(before)


def _with_itself(rows: Float[Tensor, "n width"]) -> Float[Tensor, "width width"]:
    width = rows.shape[1]
    product = rows.new_empty(width, width)
    for start in range(0, width, PANEL):
        stop = min(start + PANEL, width)
        torch.mm(rows[:, start:stop].T, rows[:, start:], out=product[start:stop, start:])
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product
