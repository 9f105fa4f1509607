"""What each channel of some inputs was like, and the range that a fixed grid of its own takes.

Values are counted by sign, exponent and the first 3 bits of the mantissa, so that a percentile is known to a sixteenth of itself; the
smallest and the largest are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.activations import Rule, least_error, quantiles

_CODES = 1 << 12
"""Signs, exponents and 3 bits of the mantissa."""

CHANNEL_BYTES = 4 * _CODES
"""Bytes of the counts of a channel."""


@dataclass(frozen=True)
class ChannelHistogram:
    """How often values of each channel were seen. A sum that can be merged, as `Histogram` is.

    counts: int32 [width, 4096], by the first 12 bits of the value in bfloat16. low, high: the exact smallest and largest of each channel.
    """

    counts: Int[Tensor, "width 4096"]
    low: Float[Tensor, "width"]
    high: Float[Tensor, "width"]

    @classmethod
    def of(cls, inputs: Float[Tensor, "*rows width"]) -> ChannelHistogram:
        """That of one batch, which is not empty."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        counts = torch.zeros(rows.shape[1] * _CODES, dtype=torch.int32)
        places = torch.arange(rows.shape[1], dtype=torch.int64) * _CODES
        for part in rows.split(max(1, (1 << 22) // rows.shape[1])):  # eight bytes a value while they are counted
            codes = part.cpu().to(torch.bfloat16).contiguous().view(torch.int16).to(torch.int64) >> 4
            index = (codes & (_CODES - 1)).add_(places).flatten()
            counts.index_add_(0, index, torch.ones(1, dtype=torch.int32).expand(index.numel()))
        low, high = rows.amin(0).cpu().to(torch.float32), rows.amax(0).cpu().to(torch.float32)
        return cls(counts.view(-1, _CODES), low, high)

    def merge(self, other: ChannelHistogram) -> ChannelHistogram:
        """Both batches together."""
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return ChannelHistogram(self.counts + other.counts, low, high)

    def sorted(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "width n"]]:
        """(the middles of the codes that any channel has, in rising order; how often each channel has them), float32 and float64."""
        seen = self.counts.any(0).nonzero()[:, 0]
        values = ((seen << 4) + 8).to(torch.int32).to(torch.int16).view(torch.bfloat16).to(torch.float32)
        order = values.argsort()
        return values[order], self.counts[:, seen[order]].to(torch.float64)


def channel_ranges(
    seen: ChannelHistogram, rule: Rule, bits: int, symmetric: bool, percentile: float
) -> tuple[Float[Tensor, "width"], Float[Tensor, "width"]]:
    """(low, high) of the grid of each channel; the rules are those of `core.activations.fixed_range`, channel by channel."""
    if rule == "min_max":
        return seen.low, seen.high
    values, counts = seen.sorted()
    if rule == "percentile":
        low, high = (quantiles(values, counts, share) for share in (1 - percentile / 100, percentile / 100))
        return torch.maximum(low, seen.low), torch.minimum(high, seen.high)
    best = least_error(values, counts, seen.low, seen.high, bits, symmetric)
    return (best * seen.low).to(torch.float32), (best * seen.high).to(torch.float32)
