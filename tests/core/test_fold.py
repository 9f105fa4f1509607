"""Folding: the function of producer and consumers stays the same, for every kind of producer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.fold import divide_norm, divide_rows, scale_columns, tie

WIDTH = 24


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scales(seed: int, width: int = WIDTH) -> torch.Tensor:
    return draw(seed, width).exp()


@pytest.mark.parametrize("plus_one", [False, True])
def test_a_norm_and_its_consumers_compute_the_same(plus_one):
    inputs, gain, scale = draw(1, 50, WIDTH), draw(2, WIDTH), scales(3)
    consumers = [draw(4, 7, WIDTH), draw(5, 11, WIDTH)]

    def run(gain: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        normed = inputs * inputs.square().mean(-1, keepdim=True).rsqrt() * (gain + plus_one)
        return torch.cat([normed @ weight.T for weight in weights], dim=-1)

    before = run(gain, consumers)
    after = run(divide_norm(gain, scale, plus_one), [scale_columns(weight, scale) for weight in consumers])
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(run(gain, [scale_columns(weight, scale) for weight in consumers]), before)


def test_a_layer_norm_folds_through_its_gain_and_its_bias():
    inputs, gain, bias, scale = draw(1, 50, WIDTH), draw(2, WIDTH), draw(6, WIDTH), scales(3)
    consumer = draw(4, 7, WIDTH)
    normed = torch.nn.functional.layer_norm(inputs, (WIDTH,))
    before = (normed * gain + bias) @ consumer.T
    folded_bias = divide_rows(bias[:, None], scale)[:, 0]
    after = (normed * divide_norm(gain, scale) + folded_bias) @ scale_columns(consumer, scale).T
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([(1, 1, 24), (2, 8, 24), (3, 6, 24), (4, 24, 24), (2, 2, 8)]))
def test_a_linear_whose_output_is_repeated_computes_the_same(seed, sizes):
    """Grouped queries: each unit of the consumer's side is `repeat` copies of a unit of the producer."""
    repeat, unit_size, width = sizes
    producer, bias, consumer = draw(seed, width // repeat, 5), draw(seed + 1, width // repeat), draw(seed + 2, 9, width)
    inputs = draw(seed + 3, 20, 5)

    def run(weight: torch.Tensor, bias: torch.Tensor, consumer: torch.Tensor) -> torch.Tensor:
        small = unit_size // repeat
        written = (inputs @ weight.T + bias).reshape(20, -1, 1, small)
        return written.expand(-1, -1, repeat, -1).reshape(20, width) @ consumer.T

    scale = tie(scales(seed + 4, width), repeat, unit_size, "mean")
    before = run(producer, bias, consumer)
    folded = divide_rows(producer, scale, repeat, unit_size)
    folded_bias = divide_rows(bias[:, None], scale, repeat, unit_size)[:, 0]
    after = run(folded, folded_bias, scale_columns(consumer, scale))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(folded, producer)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_tied_values_are_shared_by_the_copies_only(how):
    values = torch.arange(12.0)
    units = values.reshape(2, 3, 2)
    found = tie(values, 3, 6, how).reshape(2, 3, 2)
    for unit in range(2):
        for channel in range(2):
            copies = [float(units[unit, copy, channel]) for copy in range(3)]
            expected = sum(copies) / 3 if how == "mean" else max(copies)
            assert found[unit, :, channel].tolist() == [expected] * 3
    assert torch.equal(tie(values, 1, 1, how), values)


def test_scales_that_differ_between_copies_or_do_not_fit_are_refused():
    weight = torch.ones(4, 3)
    with pytest.raises(ValueError, match="same for all copies"):
        divide_rows(weight, torch.arange(1.0, 9.0), 2, 4)
    with pytest.raises(ValueError, match="4 rows"):
        divide_rows(weight, torch.ones(6), 2, 6)
    with pytest.raises(ValueError, match="do not divide"):
        tie(torch.ones(8), 2, 3, "max")


def test_the_type_of_a_weight_is_kept():
    scale = torch.rand(4) + 0.5
    assert scale_columns(torch.ones(2, 4, dtype=torch.bfloat16), scale).dtype == torch.bfloat16
    assert divide_rows(torch.ones(4, 2, dtype=torch.bfloat16), scale).dtype == torch.bfloat16
