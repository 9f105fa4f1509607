"""Rounding of inputs to a few integers or small floats, and the ranges it takes: pure functions of what a matrix reads.

    x_q = (clamp(round(x / s) + z, -2^(b-1), 2^(b-1) - 1) - z) s

    symmetric    s = max |x| / ((2^b - 1) / 2),   z = 0
    asymmetric   s = (high - low) / (2^b - 1),    z = round(-2^(b-1) - low / s),   low <= 0 <= high

The scale is that of each token, of all tokens of a call, or fixed beforehand from a histogram, for all channels or for each. Small floats
are rounded as `core.float_inputs` says. These are the numbers of the compressed-tensors format, to the bit in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.codebooks.learning import straight_through
from thrifty.core.float_inputs import rounded_floats
from thrifty.core.scaled import STANDARDS

Rule = Literal["min_max", "percentile", "mse"]

SMALLEST = torch.finfo(torch.float32).eps
"""Scales below this count as this much, so that a token of zeros divides."""

SHRINKING = tuple(1 - step / 100 for step in range(80))
"""Shares of the whole range that a search for the least squared error tries."""

LARGEST_HALF = torch.finfo(torch.float16).max

_CODES = 1 << 16
"""How many values bfloat16 has."""


@dataclass(frozen=True)
class Rounding:
    """How inputs are rounded. per: whose range decides the scale, a `token`, all of the `tensor`, a `channel`, or a `group` of channels in
    one token.

    scale, zero_point: float32 [1], or [width] for channels, fixed beforehand; None where each call finds its own. The zero point of a
    symmetric grid is 0. standard: which small floats inputs become, as `core.scaled.STANDARDS` has it; empty for integers. The fixed
    scale of `nvfp4` is the one that makes scales of groups numbers of e4m3.
    """

    bits: int
    per: Literal["token", "tensor", "channel", "group"]
    symmetric: bool
    scale: Float[Tensor, "channels"] | None = None
    zero_point: Float[Tensor, "channels"] | None = None
    standard: str = ""

    @property
    def has_ends(self) -> bool:
        """Whether it is one fixed grid of evenly spaced points, whose two ends training may move."""
        return self.scale is not None and self.per == "tensor" and not self.standard

    @property
    def counts(self) -> bool:
        """Whether inputs become integers that share a scale over the whole row, which a product of integers takes."""
        return not self.standard and self.per in ("token", "tensor")

    @property
    def group_size(self) -> int:
        """Channels of a token that share a scale, 0 where all of them do."""
        return STANDARDS[self.standard].group_size if self.standard else 0

    def __call__(self, inputs: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens width"]:
        """The inputs, rounded, in their own type; the gradient passes straight through."""
        rounded = self._floats(inputs.detach()) if self.standard else self._integers(inputs.detach())
        if inputs.dtype == torch.float16:  # scales that were rounded up can lead beyond it
            rounded.clamp_(-LARGEST_HALF, LARGEST_HALF)
        rounded = rounded.to(inputs.dtype)
        return straight_through(inputs, rounded) if inputs.requires_grad else rounded

    def _integers(self, inputs: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens width"]:
        scale, zero_point = self.grid(inputs)
        low, high = ends(self.bits)
        codes = inputs.to(torch.float32).div(scale).add_(zero_point).round_().clamp_(low, high)
        return codes.sub_(zero_point).mul_(scale)

    def _floats(self, inputs: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens width"]:
        scale = None if self.scale is None else self.scale.to(inputs.device)
        return rounded_floats(inputs.to(torch.float32), self.standard, by_token=self.per == "token", scale=scale)

    def grid(self, inputs: Float[Tensor, "*tokens width"]) -> tuple[Float[Tensor, "*ones"], Float[Tensor, "*ones"]]:
        """(scale, zero point) of integers for these inputs, float32: one number, one a token [*tokens, 1] or one a channel [width]."""
        if self.scale is not None and self.zero_point is not None:
            return self.scale.to(inputs.device), self.zero_point.to(inputs.device)
        if self.per == "token":
            low, high = inputs.amin(-1, keepdim=True), inputs.amax(-1, keepdim=True)
        else:
            low, high = inputs.amin(), inputs.amax()
        return fitted(low.to(torch.float32), high.to(torch.float32), self.bits, self.symmetric)


def ends(bits: int) -> tuple[int, int]:
    """The smallest and the largest code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def fitted(
    low: Float[Tensor, "*n"], high: Float[Tensor, "*n"], bits: int, symmetric: bool
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """(scale, zero point) of the grid that covers low..high and holds zero."""
    least, most = ends(bits)
    low, high = low.clamp_max(0), high.clamp_min(0)
    if symmetric:
        scale = torch.maximum(-low, high) / ((most - least) / 2)
        return scale.clamp_min(SMALLEST), torch.zeros_like(scale)
    scale = ((high - low) / (most - least)).clamp_min(SMALLEST)
    return scale, (least - low / scale).clamp(least, most).round()


@dataclass(frozen=True)
class Histogram:
    """How often each value of bfloat16 was seen; inputs are rounded to it. A sum that can be merged, as `Statistics` is.

    counts: int64 [65536], by the bits of the value. low, high: the exact smallest and largest value.
    """

    counts: Int[Tensor, "65536"]
    low: float
    high: float

    @classmethod
    def of(cls, inputs: Float[Tensor, "*rows width"]) -> Histogram:
        """That of one batch, which is not empty."""
        codes = inputs.detach().to(torch.bfloat16).contiguous().view(torch.int16).flatten()
        counts = torch.zeros(_CODES, dtype=torch.int64)
        for part in codes.split(1 << 22):  # eight bytes a value while they are counted
            counts += torch.bincount(part.cpu().to(torch.int64) & (_CODES - 1), minlength=_CODES)
        return cls(counts, float(inputs.min()), float(inputs.max()))

    def merge(self, other: Histogram) -> Histogram:
        """Both batches together."""
        return Histogram(self.counts + other.counts, min(self.low, other.low), max(self.high, other.high))

    def sorted(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """(values that were seen in rising order, how often), float32 and float64."""
        values = torch.arange(_CODES, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(torch.float32)
        seen = self.counts.nonzero()[:, 0]
        order = values[seen].argsort()
        return values[seen][order], self.counts[seen][order].to(torch.float64)

    def moments(self) -> tuple[float, float]:
        """(mean, deviation) of all values."""
        values, counts = self.sorted()
        weights, values = counts / counts.sum(), values.to(torch.float64)
        mean = float((weights * values).sum())
        return mean, float((weights * (values - mean).square()).sum().sqrt())

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of all values does not exceed."""
        values, counts = self.sorted()
        return float(quantiles(values, counts, share))


def quantiles(values: Float[Tensor, "n"], counts: Float[Tensor, "*channels n"], share: float) -> Float[Tensor, "*channels"]:
    """The smallest value of each channel that at least this share of its values does not exceed. values: in rising order; counts: how often
    each channel has them."""
    reached = counts.cumsum(-1)
    return values[(reached >= share * reached[..., -1:]).to(torch.uint8).argmax(-1)]


def least_error(
    values: Float[Tensor, "n"],
    counts: Float[Tensor, "*channels n"],
    low: Float[Tensor, "*channels"],
    high: Float[Tensor, "*channels"],
    bits: int,
    symmetric: bool,
) -> Float[Tensor, "*channels"]:
    """The share of low..high, float64, whose grid has the least squared error in each channel; values and counts as in `quantiles`."""
    least, most = ends(bits)
    errors = []
    for share in SHRINKING:
        scale, zero_point = (part[..., None] for part in fitted(share * low, share * high, bits, symmetric))
        rounded = ((values / scale + zero_point).round_().clamp_(least, most) - zero_point) * scale
        errors.append(((rounded - values).square_().to(torch.float64) * counts).sum(-1))
    return torch.tensor(SHRINKING, dtype=torch.float64)[torch.stack(errors).argmin(0)]


def fixed_range(seen: Histogram, rule: Rule, bits: int, symmetric: bool, percentile: float) -> tuple[float, float]:
    """(low, high) of a grid for values like these.

    min_max: all of them. percentile: all but the share of 1 - percentile / 100 at each end. mse: the share of the whole range whose grid
    has the least squared error.
    """
    if rule == "min_max":
        return seen.low, seen.high
    if rule == "percentile":
        return seen.quantile(1 - percentile / 100), seen.quantile(percentile / 100)
    best = float(least_error(*seen.sorted(), torch.tensor(seen.low), torch.tensor(seen.high), bits, symmetric))
    return best * seen.low, best * seen.high
