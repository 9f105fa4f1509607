"""Statistics: a monoid whose values are those of all inputs at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.anatomy import Space
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics

FIELDS = ("gram_sum", "absolute_sum", "absolute_max", "value_sum", "low", "high")


def whole(seed: int, *shape: int) -> torch.Tensor:
    """Small integers: sums of their products are exact in float32 in any order."""
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).float()


def same(left: Statistics, right: Statistics) -> bool:
    return left.tokens == right.tokens and all(torch.equal(getattr(left, name), getattr(right, name)) for name in FIELDS)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_merging_is_associative_commutative_and_equals_the_concatenation(seed, width, first, second, third):
    batches = [whole(seed + index, count, width) for index, count in enumerate((first, second, third))]
    a, b, c = (Statistics.of(batch) for batch in batches)
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert same(a.merge(b), b.merge(a))
    assert same(a.merge(b).merge(c), Statistics.of(torch.cat(batches)))
    zero = Statistics.empty(width)
    assert same(zero.merge(a), a) and same(a.merge(zero), a)


def test_the_values_are_the_sums_and_means_over_all_inputs():
    inputs = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(1))
    found = Statistics.of(inputs)
    rows = inputs.reshape(-1, 6).double()
    assert found.tokens == 120
    torch.testing.assert_close(found.gram.double(), rows.T @ rows / 120, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.absolute_mean.double(), rows.abs().mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.absolute_max.double(), rows.abs().amax(0))
    assert torch.equal(found.low.double(), rows.amin(0)) and torch.equal(found.high.double(), rows.amax(0))


def test_nothing_seen_is_zero_and_not_nan():
    for found in (Statistics.empty(5), Statistics.of(torch.empty(2, 0, 5))):
        assert found.tokens == 0
        assert torch.equal(found.gram, torch.zeros(5, 5))
        assert torch.equal(found.absolute_mean, torch.zeros(5))
        assert torch.equal(found.absolute_max, torch.zeros(5))


def test_merging_leaves_its_parts_as_they_were():
    a, b = Statistics.of(whole(1, 4, 3)), Statistics.of(whole(2, 4, 3))
    kept = Statistics.of(whole(1, 4, 3))
    a.merge(b).gram_sum.add_(1)
    assert same(a, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [True, False])
def test_half_precision_inputs_lose_nothing_in_the_sums(dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr("thrifty.core.statistics.sums", lambda rows: None)
    exact = whole(3, 200, 48)
    assert same(Statistics.of(exact.to(dtype)), Statistics.of(exact))
    inputs = torch.randn(300, 64, generator=torch.Generator().manual_seed(4)).to(dtype)
    rows = inputs.double()
    gram = Statistics.of(inputs).gram_sum
    assert gram.dtype == torch.float32
    norms = rows.square().sum(0).sqrt()
    assert float(((gram.double() - rows.T @ rows) / (norms[:, None] * norms)).abs().max()) < 2e-6


def test_bfloat16_inputs_leave_the_precision_of_products_as_it_was(monkeypatch):
    monkeypatch.setattr("thrifty.core.statistics.sums", lambda rows: None)
    before = torch.get_float32_matmul_precision()
    Statistics.of(torch.ones(4, 4, dtype=torch.bfloat16))
    assert torch.get_float32_matmul_precision() == before


def test_under_a_scale_are_the_statistics_of_the_scaled_inputs():
    inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(5))
    scale = torch.rand(8, generator=torch.Generator().manual_seed(6)) + 0.2
    found, expected = Statistics.of(inputs).under(Rewrite(Space("in", 8), scale)), Statistics.of(inputs / scale)
    assert found.tokens == expected.tokens
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_smallest_and_largest_follow_a_shift():
    inputs, generator = torch.randn(50, 8, generator=torch.Generator().manual_seed(7)), torch.Generator().manual_seed(8)
    rewrite = Rewrite(Space("in", 8), torch.rand(8, generator=generator) + 0.2, shift=torch.randn(8, generator=generator))
    found, expected = Statistics.of(inputs).under(rewrite), Statistics.of(rewrite.of(inputs))
    for name in ("low", "high", "absolute_max", "value_sum"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
