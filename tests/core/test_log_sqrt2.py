"""Powers of the square root of two: every code round-trips, the two ways to decode agree, and what the paper promises of attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.log_sqrt2 import attend, decode, decode_by_shifts, encode, fit_scale, zero_code

BITS = range(2, 9)


def all_codes(bits: int) -> torch.Tensor:
    return torch.arange(2**bits).to(torch.uint8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", [1.0, 0.37, 2.0**-9])
def test_every_code_stands_for_its_power_and_comes_back(bits, scale):
    codes = all_codes(bits)
    numbers = decode(codes, scale, bits)
    expected = [scale * 2 ** (-code / 2) for code in range(2**bits - 1)]
    assert numbers.tolist() == pytest.approx([*expected, 0.0], rel=1e-6)
    assert torch.equal(encode(numbers, scale, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_shifts_give_the_same_numbers(bits):
    codes, scale = all_codes(bits), torch.tensor(0.37, dtype=torch.float64)
    torch.testing.assert_close(decode_by_shifts(codes, 1.0, bits), decode(codes, 1.0, bits), rtol=1e-6, atol=0)
    even = codes[:-1:2]  # without a factor there is nothing to round
    assert torch.equal(decode_by_shifts(even, 1.0, bits), torch.exp2(-even.double() / 2).float())
    assert decode(codes, scale, bits).shape == codes.shape


@given(st.floats(1e-30, 1.0), st.sampled_from(list(BITS)), st.floats(1e-3, 10.0))
def test_what_is_in_range_is_off_by_less_than_a_fifth_and_the_rest_is_zero(part, bits, scale):
    value = torch.tensor([part * scale], dtype=torch.float64)
    found = float(decode(encode(value, scale, bits), scale, bits))
    last = 2 ** (-(zero_code(bits) - 1) / 2)
    if part > last * 2**-0.25 * (1 + 1e-9):
        assert abs(found / float(value) - 1) <= 2**0.25 - 1 + 1e-6
    elif part < last * 2**-0.25 * (1 - 1e-9):
        assert found == 0, "what is too small is zero, never the smallest power"


def test_zero_is_zero_and_what_is_above_the_scale_is_clipped():
    assert decode(encode(torch.tensor([0.0, 0.7, 9.0]), 0.5, 4), 0.5, 4).tolist() == [0.0, 0.5, 0.5]


@given(st.integers(0, 10_000), st.sampled_from([3, 4, 6]))
def test_numerators_of_attention_keep_outputs_among_the_values(seed, bits):
    """Divided by the sum after the product: a mean of the values, whatever was rounded; nothing rounded, it is softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits, values = 3 * torch.randn(6, 9, generator=generator), torch.randn(9, 4, generator=generator)
    exact = (logits - logits.amax(-1, keepdim=True)).exp()
    rounded = decode(encode(exact, 1.0, bits), 1.0, bits)
    assert bool((rounded.amax(-1) == 1).all()), "the largest is kept as it is, so the sum is never zero"
    for numerators in (exact, rounded):
        out = numerators @ values / numerators.sum(-1, keepdim=True)
        assert bool((out <= values.amax(0) + 1e-5).all()) and bool((out >= values.amin(0) - 1e-5).all())
    torch.testing.assert_close(exact @ values / exact.sum(-1, keepdim=True), logits.softmax(-1) @ values)
    torch.testing.assert_close(attend(logits, values, bits), rounded @ values / rounded.sum(-1, keepdim=True))


def test_attention_does_not_look_at_what_is_masked():
    generator = torch.Generator().manual_seed(0)
    logits, values = 3 * torch.randn(2, 6, 9, generator=generator), torch.randn(2, 9, 4, generator=generator)
    logits[..., 5:] = -torch.inf
    torch.testing.assert_close(attend(logits, values, 4), attend(logits[..., :5], values[:, :5], 4))


def outputs_lose(bits: int, spread: float) -> dict[str, float]:
    """Squared error of what attention gives, its logits normal with that spread: numerators, probabilities, evenly spaced probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits, values = spread * torch.randn(256, 64, generator=generator), torch.randn(64, 16, generator=generator)
    exact = logits.softmax(-1)
    scale, step = fit_scale(exact, bits), float(exact.max()) / (2**bits - 1)
    numerators = decode(encode((logits - logits.amax(-1, keepdim=True)).exp(), 1.0, bits), 1.0, bits)
    tried = {
        "numerators": numerators / numerators.sum(-1, keepdim=True),
        "probabilities": decode(encode(exact, scale, bits), scale, bits),
        "even": (exact / step).round() * step,
    }
    return {name: float((part @ values - exact @ values).square().sum()) for name, part in tried.items()}


@pytest.mark.parametrize("spread", [1.0, 2.0, 3.0, 5.0])
def test_numerators_of_four_bits_lose_less_than_probabilities_and_than_even_steps(spread):
    """The baseline of the paper is min-max with the same bits."""
    lost = outputs_lose(4, spread)
    assert lost["numerators"] < 0.65 * lost["probabilities"] and lost["numerators"] < 0.35 * lost["even"]


def test_with_more_bits_even_steps_lose_less():
    """Powers have as many bits as they like for what is small, and stay a fifth apart where it counts."""
    for spread in (0.5, 1.0, 2.0, 3.0, 5.0):
        lost = outputs_lose(8, spread)
        assert lost["even"] < 0.2 * lost["numerators"]


def test_the_scale_is_the_quantile_that_loses_least():
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(1)) ** 8
    ordered = values.sort().values
    tried = [float(ordered[math.ceil(share * len(ordered)) - 1]) for share in (0.999, 0.9999, 0.99999)]
    errors = [float((decode(encode(values, scale, 3), scale, 3) - values).square().sum()) for scale in tried]
    assert len(set(errors)) == 3 and fit_scale(values, 3) == tried[errors.index(min(errors))]
    assert fit_scale(torch.zeros(5), 4) == 1.0
