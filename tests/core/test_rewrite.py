"""Rewrites: producers, consumers, biases and statistics, each against the inputs themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.anatomy import Space
from thrifty.core.fold import copied
from thrifty.core.hadamard import Rotation
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics

HEADS, SIZE = 2, 12


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(seed: int, repeat: int, scaled: bool, turned: bool, shifted: bool) -> Rewrite:
    """A rewrite of attention outputs: two value heads of 12 channels, each for `repeat` query heads."""
    rows, width = HEADS * SIZE, HEADS * SIZE * repeat
    space = Space("o.in", width, "kv_group", SIZE * repeat, repeat=repeat)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return copied(values, repeat, SIZE * repeat)

    return Rewrite(
        space,
        spread(draw(seed, rows).exp() if scaled else torch.ones(rows).double()),
        Rotation(spread(Rotation.random(rows, seed).signs), 4) if turned else None,
        spread(draw(seed + 1, rows)) if shifted else None,
    )


@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.booleans(), st.booleans(), st.booleans())
def test_values_averaged_by_attention_are_rewritten_and_read_back(seed, repeat, scaled, turned, shifted):
    rewrite = drawn(seed, repeat, scaled, turned, shifted)
    rows, width = HEADS * SIZE, HEADS * SIZE * repeat
    value, bias, output, added = draw(seed + 2, rows, 7), draw(seed + 3, rows), draw(seed + 4, 9, width), draw(seed + 5, 9)
    inputs = draw(seed + 6, 20, 7)
    averages = torch.softmax(draw(seed + 7, 20, 20), dim=-1)

    def attention(value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        written = averages @ (inputs @ value.T + bias)
        return written.reshape(20, HEADS, 1, SIZE).expand(-1, -1, repeat, -1).reshape(20, width)

    before = attention(value, bias)
    after = attention(rewrite.producer(value), rewrite.producer_bias(bias))
    torch.testing.assert_close(after, rewrite.of(before), rtol=1e-10, atol=1e-10)
    found = after @ rewrite.consumer(output).T + added + rewrite.correction(output)
    torch.testing.assert_close(found, before @ output.T + added, rtol=1e-10, atol=1e-10)
    assert rewrite.by_channel == (not turned and not shifted)


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans())
def test_statistics_follow_where_they_can(seed, scaled, turned, shifted):
    rewrite = drawn(seed, 1, scaled, turned, shifted)
    inputs = draw(seed + 8, 40, HEADS * SIZE) + draw(seed + 9, HEADS * SIZE)
    whole = Statistics.of(inputs)
    seen = replace(whole, gram_sum=inputs.T @ inputs, absolute_sum=inputs.abs().sum(0), value_sum=inputs.sum(0))
    found, turned_inputs = seen.under(rewrite), rewrite.of(inputs)
    assert found.tokens == 40
    torch.testing.assert_close(found.gram_sum, turned_inputs.T @ turned_inputs, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.mean, turned_inputs.mean(0), rtol=1e-8, atol=1e-8)
    assert bool(found.absolute_mean.isnan().all()) == (turned or shifted)
    assert bool(found.absolute_max.isnan().all()) == turned


def test_a_shift_needs_the_mean():
    with pytest.raises(ValueError, match="give the mean"):
        drawn(1, 1, True, False, True).under(torch.eye(HEADS * SIZE).double())
