"""What calibration remembers of a space: a sum that can be merged, so it runs on one core, resumes, and spreads over machines.

`Statistics` is a monoid: `empty(width)` is its zero and `merge` adds two partial sums. Merging happens in the order of the sample ids,
so the result does not depend on who computed which part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Sums over the inputs x of one space.

    tokens: how many inputs were seen. gram_sum: [width, width] sum of x x^T, float32.
    absolute_sum: [width] sum of |x|, float32. low, high: [width] smallest and largest x; infinite, the wrong way round, where nothing was
    seen.
    """

    tokens: int
    gram_sum: Float[Tensor, "width width"]
    absolute_sum: Float[Tensor, "width"]
    low: Float[Tensor, "width"]
    high: Float[Tensor, "width"]

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Statistics:
        """The zero: nothing seen."""
        zeros = torch.zeros(width, device=device)
        return cls(0, torch.zeros(width, width, device=device), zeros, zeros + torch.inf, zeros - torch.inf)

    @classmethod
    def of(cls, inputs: Float[Tensor, "*rows width"]) -> Statistics:
        """The statistics of one batch of inputs; sums are taken in float32."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        if rows.shape[0] == 0:
            return cls.empty(rows.shape[1], rows.device)
        return cls(rows.shape[0], _gram(rows, inputs.dtype), rows.abs().sum(0), *torch.aminmax(rows, dim=0))

    def merge(self, other: Statistics) -> Statistics:
        """Both batches together."""
        return Statistics(
            self.tokens + other.tokens,
            self.gram_sum + other.gram_sum,
            self.absolute_sum + other.absolute_sum,
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

    def under(self, scale: Float[Tensor, "width"]) -> Statistics:
        """The statistics of x / scale."""
        return Statistics(
            self.tokens,
            self.gram_sum / (scale[:, None] * scale[None, :]),
            self.absolute_sum / scale,
            self.low / scale,
            self.high / scale,
        )


def _gram(rows: Float[Tensor, "n width"], dtype: torch.dtype) -> Float[Tensor, "width width"]:
    """rows^T rows in float32.

    Values that came from bfloat16 keep all their bits in the processor's bfloat16 multipliers, which add up in float32: the products stay
    exact and the call takes a third of the time where those multipliers exist.
    """
    if dtype != torch.bfloat16 or rows.device.type != "cpu":
        return rows.T @ rows
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return rows.T @ rows
    finally:
        torch.set_float32_matmul_precision(before)
