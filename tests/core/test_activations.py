"""Rounding of inputs: equal to the library of the format to the bit, and ranges that are what they say."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.activations import SHRINKING, Histogram, Rounding, ends, fitted, fixed_range


def draw(seed: int, *shape: int, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + mean


@pytest.mark.parametrize("per", ["token", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mean", [0.0, 5.0, -20.0])
def test_a_rounding_is_that_of_the_library(per: str, symmetric: bool, bits: int, mean: float) -> None:
    inputs = draw(0, 7, 24, mean=mean)
    inputs[3] = 0
    arguments = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=per, dynamic=True)
    ranged = (inputs.amin(-1, keepdim=True), inputs.amax(-1, keepdim=True)) if per == "token" else (inputs.amin(), inputs.amax())
    scale, zero_point = calculate_qparams(*ranged, arguments)
    expected = fake_quantize(inputs, scale, zero_point, arguments)
    assert torch.equal(Rounding(bits, per, symmetric)(inputs), expected)
    fixed = Rounding(bits, "tensor", symmetric, *(part.reshape(1) for part in fitted(inputs.amin(), inputs.amax(), bits, symmetric)))
    if per == "tensor":
        assert torch.equal(fixed(inputs), expected)
    else:
        assert not torch.equal(fixed(inputs), expected)


@given(st.integers(0, 10_000), st.integers(2, 8), st.booleans(), st.sampled_from(["token", "tensor"]))
def test_what_lies_in_the_range_moves_by_half_a_step_at_most(seed: int, bits: int, symmetric: bool, per: str) -> None:
    inputs = draw(seed, 5, 16, mean=float(seed % 7) - 3)
    rounding = Rounding(bits, per, symmetric)
    scale, _ = rounding.grid(inputs)
    # the range is cut by up to a step where the zero point is rounded
    assert bool(((rounding(inputs) - inputs).abs() <= scale * 1.001).all())
    assert len(rounding(inputs)[0].unique()) <= 2**bits
    # the largest of a call decides its own grid, so that rounding twice changes nothing but the last bits
    assert torch.equal(rounding(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_the_type_is_kept_and_gradients_pass_straight_through() -> None:
    inputs = draw(1, 4, 8).to(torch.bfloat16).requires_grad_()
    rounded = Rounding(4, "token", True)(inputs)
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded, inputs)
    rounded.sum().backward()
    assert torch.equal(inputs.grad, torch.ones_like(inputs))


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_histograms_add_up_whatever_the_batches(seed: int, cut: int) -> None:
    inputs = draw(seed, 41, 3)
    whole, parts = Histogram.of(inputs), Histogram.of(inputs[:cut]).merge(Histogram.of(inputs[cut:]))
    assert torch.equal(whole.counts, parts.counts)
    assert (whole.low, whole.high) == (parts.low, parts.high) == (float(inputs.min()), float(inputs.max()))
    values, counts = whole.sorted()
    seen = inputs.to(torch.bfloat16).float().flatten().sort().values
    assert torch.equal(values.repeat_interleave(counts.long()), seen)


@pytest.mark.parametrize("share", [0.0005, 0.1, 0.5, 0.999, 1.0])
def test_quantiles_are_those_of_the_sorted_values(share: float) -> None:
    inputs = draw(3, 100, 37)
    seen = inputs.to(torch.bfloat16).float().flatten().sort().values
    assert Histogram.of(inputs).quantile(share) == float(seen[max(0, -int(-share * len(seen) // 1) - 1)])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_range_of_least_squared_error_is_found(bits: int, symmetric: bool) -> None:
    """Against every share of the range, rounded value by value."""
    inputs = draw(5, 300, 8).to(torch.bfloat16).float()
    inputs[0, 0], inputs[1, 1] = 60.0, -21.0
    seen = Histogram.of(inputs)

    def error(low: float, high: float) -> float:
        scale, zero_point = fitted(torch.tensor([low]), torch.tensor([high]), bits, symmetric)
        return float((Rounding(bits, "tensor", symmetric, scale, zero_point)(inputs) - inputs).square().sum())

    tried = [error(share * seen.low, share * seen.high) for share in SHRINKING]
    found = error(*fixed_range(seen, "mse", bits, symmetric, 99.99))
    assert found == pytest.approx(min(tried), rel=1e-5)
    whole = error(*fixed_range(seen, "min_max", bits, symmetric, 99.99))
    assert found < 0.7 * whole if bits < 8 else found <= whole
    low, high = fixed_range(seen, "percentile", bits, symmetric, 99.0)
    assert seen.quantile(1 - 99.0 / 100) == low > seen.low and seen.quantile(0.99) == high < seen.high


def test_a_grid_holds_zero_and_its_ends() -> None:
    for low, high in ((-1.0, 3.0), (2.0, 5.0), (-4.0, -1.0), (0.0, 0.0)):
        scale, zero_point = fitted(torch.tensor([low]), torch.tensor([high]), 8, symmetric=False)
        least, most = ends(8)
        assert least <= float(zero_point) <= most
        assert float((least - zero_point) * scale) <= min(low, 0) + float(scale)
        assert float((most - zero_point) * scale) >= max(high, 0) - float(scale)
