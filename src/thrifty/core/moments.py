"""What calibration remembers of a space where no products of its channels are needed: their means and mean squares.

`Moments` is a monoid, as `core.statistics` is: `empty(width)` is its zero and `merge` adds two partial sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

AT_ONCE = 1 << 18
"""Values that are held in double precision at once."""


@dataclass(frozen=True)
class Moments:
    """Sums over the inputs x of one space: how many there were, their sum and that of their squares [width], float64."""

    tokens: int
    sum: Float[Tensor, "width"]
    square_sum: Float[Tensor, "width"]

    @classmethod
    def empty(cls, width: int) -> Moments:
        """The zero: nothing seen."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    @classmethod
    def of(cls, inputs: Float[Tensor, "*rows width"]) -> Moments:
        """The moments of one batch of inputs; sums are taken in float64, on the CPU."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        total = cls.empty(rows.shape[1])
        for chunk in rows.split(max(1, AT_ONCE // max(1, rows.shape[1]))):
            part = chunk.to("cpu", torch.float64)
            total = total.merge(cls(len(part), part.sum(0), part.square().sum(0)))
        return total

    def merge(self, other: Moments) -> Moments:
        """Both batches together."""
        return Moments(self.tokens + other.tokens, self.sum + other.sum, self.square_sum + other.square_sum)

    @property
    def mean(self) -> Float[Tensor, "width"]:
        """Mean of x, float32; zero where nothing was seen."""
        return (self.sum / max(self.tokens, 1)).to(torch.float32)

    @property
    def square(self) -> Float[Tensor, "width"]:
        """Mean of x^2, float32."""
        return (self.square_sum / max(self.tokens, 1)).to(torch.float32)

    @property
    def variance(self) -> Float[Tensor, "width"]:
        """Mean of (x - mean)^2, float32, never negative."""
        mean = self.sum / max(self.tokens, 1)
        return (self.square_sum / max(self.tokens, 1) - mean.square()).clamp_min(0).to(torch.float32)
