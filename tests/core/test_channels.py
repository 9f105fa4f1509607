"""Ranges of channels: those of each channel alone, found from values that are counted coarsely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.core.activations import SHRINKING, Histogram, Rounding, fitted, fixed_range
from thrifty.core.channels import ChannelHistogram, channel_ranges


def draw(seed: int, rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator) * torch.exp2(torch.arange(width) - width / 2)
    return values + torch.randn(width, generator=generator)


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_histograms_add_up_whatever_the_batches(seed: int, cut: int) -> None:
    inputs = draw(seed, 41, 5)
    whole, parts = ChannelHistogram.of(inputs), ChannelHistogram.of(inputs[:cut]).merge(ChannelHistogram.of(inputs[cut:]))
    assert torch.equal(whole.counts, parts.counts) and bool((whole.counts.sum(1) == 41).all())
    assert torch.equal(whole.low, inputs.amin(0)) and torch.equal(parts.high, inputs.amax(0))
    values, counts = whole.sorted()
    assert bool((values.diff() > 0).all())
    for channel in range(5):  # every value lies within a sixteenth of the middle of its code
        middles = values.repeat_interleave(counts[channel].long())
        torch.testing.assert_close(middles, inputs[:, channel].sort().values, rtol=1 / 14, atol=1e-30)


def test_the_smallest_and_the_largest_are_exact() -> None:
    inputs = draw(1, 200, 6)
    low, high = channel_ranges(ChannelHistogram.of(inputs), "min_max", 8, False, 99.0)
    assert torch.equal(low, inputs.amin(0)) and torch.equal(high, inputs.amax(0))


@pytest.mark.parametrize("percentile", [75.0, 99.0])
def test_percentiles_are_those_of_each_channel(percentile: float) -> None:
    """To a sixteenth of themselves, against the histogram of the channel alone."""
    inputs = draw(2, 500, 6)
    low, high = channel_ranges(ChannelHistogram.of(inputs), "percentile", 8, False, percentile)
    for channel in range(6):
        expected = torch.tensor(fixed_range(Histogram.of(inputs[:, channel : channel + 1]), "percentile", 8, False, percentile))
        torch.testing.assert_close(torch.stack([low[channel], high[channel]]), expected, rtol=1 / 14, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
def test_the_range_of_least_squared_error_is_found(bits: int, symmetric: bool) -> None:
    """Within five percent of the least that any share of the range has, rounded value by value; and well below the whole range's."""
    inputs = draw(3, 600, 4)
    inputs[0] *= 12

    def errors(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        rounding = Rounding(bits, "channel", symmetric, *fitted(low, high, bits, symmetric))
        return (rounding(inputs) - inputs).square().sum(0)

    seen = ChannelHistogram.of(inputs)
    tried = torch.stack([errors(share * seen.low, share * seen.high) for share in SHRINKING]).amin(0)
    found = errors(*channel_ranges(seen, "mse", bits, symmetric, 99.0))
    assert bool((found <= 1.05 * tried).all())
    assert bool((found < 0.9 * errors(seen.low, seen.high)).any())


def test_a_grid_for_each_channel_is_that_of_the_channel_alone() -> None:
    inputs = draw(4, 50, 8)
    scale, zero_point = fitted(inputs.amin(0), inputs.amax(0), 4, symmetric=False)
    rounded = Rounding(4, "channel", False, scale, zero_point)(inputs)
    for channel in range(8):
        alone = Rounding(4, "tensor", False, scale[channel : channel + 1], zero_point[channel : channel + 1])
        assert torch.equal(rounded[:, channel], alone(inputs[:, channel]))
    # one grid for all loses more: the channels differ by powers of two
    whole = Rounding(4, "tensor", False, *(part.reshape(1) for part in fitted(inputs.amin(), inputs.amax(), 4, symmetric=False)))
    assert float((rounded - inputs).square().mean(0)[0]) < 0.01 * float((whole(inputs) - inputs).square().mean(0)[0])
