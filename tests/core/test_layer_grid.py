"""One grid for a layer against a grid for each channel: the same codes, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.activations import Rounding, ends
from thrifty.core.layer_grid import centred_grid, channel_grids, layer_grid


def inputs_of(seed: int, tokens: int = 200, width: int = 48) -> torch.Tensor:
    """Channels of very different sizes and means."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(width, generator=generator, dtype=torch.float64).mul(1.2).exp()
    return (torch.randn(tokens, width, generator=generator, dtype=torch.float64) + torch.randn(width, generator=generator)) * size


def rounded(inputs: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int) -> torch.Tensor:
    return ((inputs / scale).round() + zero_point).clamp(*ends(bits))


@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]))
def test_codes_on_the_layers_grid_are_those_on_the_channels_grids(seed, bits):
    inputs = inputs_of(seed)
    low, high = torch.aminmax(inputs, dim=0)
    scale, zero_point = channel_grids(low, high, bits)
    ratio, shift = layer_grid(low, high, bits)
    step = scale.mean()
    after = (inputs - shift) / ratio
    codes, expected = rounded(after, step, torch.zeros(()), bits), rounded(inputs, scale, zero_point, bits)
    ties = ((inputs / scale) % 1 - 0.5).abs() < 1e-9  # a value between two codes may go either way
    assert torch.equal(codes[~ties], expected[~ties]) and float(ties.double().mean()) < 0.01
    torch.testing.assert_close(codes * step * ratio + shift, (codes - zero_point) * scale, rtol=0, atol=1e-9 * float(high.abs().max()))
    assert set(codes.unique().tolist()) <= set(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


@pytest.mark.parametrize(("bits", "gain"), [(4, 4.0), (8, 4.0)])
def test_one_grid_then_loses_as_little_as_one_a_channel(bits, gain):
    """Squared errors of each channel in units of its own, as a consumer with columns of equal weight for each sees them."""
    inputs = inputs_of(1).float()
    low, high = torch.aminmax(inputs, dim=0)
    scale, zero_point = channel_grids(low, high, bits)
    ratio, shift = layer_grid(low, high, bits)
    energy = inputs.var(0)

    def lost(values: torch.Tensor) -> float:
        return float(((values - inputs).square().mean(0) / energy).mean())

    alone = lost((rounded(inputs, scale, zero_point, bits) - zero_point) * scale)
    one = Rounding(bits, "tensor", True, scale.mean()[None], torch.zeros(1))
    together = lost(one((inputs - shift) / ratio) * ratio + shift)
    plain = lost(Rounding(bits, "tensor", False)(inputs))
    assert together == pytest.approx(alone, rel=1e-3)
    assert plain > gain * together


def test_without_a_shift_the_grids_are_centred():
    inputs = inputs_of(2)
    ratio = centred_grid(*torch.aminmax(inputs, dim=0))
    torch.testing.assert_close(ratio, inputs.abs().amax(0) / inputs.abs().amax(0).mean())
    largest = (inputs / ratio).abs().amax(0)
    torch.testing.assert_close(largest, largest[:1].expand_as(largest))


def test_constant_and_silent_channels():
    inputs = inputs_of(3)
    inputs[:, 5], inputs[:, 9] = 3.0, 0.0
    ratio, shift = layer_grid(*torch.aminmax(inputs, dim=0), 4)
    assert ratio[[5, 9]].tolist() == [1, 1] and shift[[5, 9]].tolist() == [3, 0]
    assert bool(ratio.isfinite().all() & shift.isfinite().all() & (ratio > 0).all())
    ratio, shift = layer_grid(torch.zeros(4), torch.zeros(4), 4)
    assert ratio.tolist() == [1] * 4 and shift.tolist() == [0] * 4
    assert centred_grid(torch.zeros(4), torch.zeros(4)).tolist() == [1] * 4
