"""Intervals: closed forms, agreement with a plain bootstrap, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.errors import InputError
from thrifty.measure.intervals import (
    Interval,
    bootstrap,
    mean_interval,
    perplexity,
    perplexity_difference,
    perplexity_ratio,
    ratio_interval,
    resampled_sums,
    student_quantile,
)


def test_perplexity_of_equal_windows_is_exact_and_has_no_width():
    tokens = torch.full((40,), 31.0, dtype=torch.float64)
    found = perplexity(tokens * math.log(7.0), tokens)
    assert found.value == pytest.approx(7.0, rel=1e-12)
    assert found.low == pytest.approx(7.0, rel=1e-12)
    assert found.high == pytest.approx(7.0, rel=1e-12)


def test_perplexity_weighs_windows_by_their_tokens():
    found = perplexity(torch.tensor([10.0, 1.0]), torch.tensor([9.0, 2.0]))
    assert found.value == pytest.approx(math.e, rel=1e-12)


def test_paired_ratio_of_a_constant_factor_has_no_width_although_windows_differ():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 60, (50,), generator=generator).double()
    before = tokens * torch.rand(50, generator=generator).double() * 4
    after = before + tokens * math.log(1.25)
    found = perplexity_ratio(before, after, tokens)
    assert (found.value, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25), rel=1e-12)
    alone = perplexity(before, tokens)
    assert alone.high - alone.low > 0.1
    difference = perplexity_difference(before, after, tokens)
    assert difference.value == pytest.approx(0.25 * alone.value)


def test_resampled_sums_agree_with_a_plain_loop():
    columns = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = resampled_sums(columns, 5, seed=9)
    drawn = torch.randint(7, (5, 7), generator=torch.Generator().manual_seed(9))
    expected = torch.stack([sum(columns[int(index)] for index in row) for row in drawn])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_half_width_for_many_windows_is_that_of_the_normal_interval():
    values = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = mean_interval(values)
    expected = 1.96 * float(values.std()) / math.sqrt(2000)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.05)
    assert found.value == pytest.approx(float(values.mean()), rel=1e-12)


@pytest.mark.parametrize("windows", [8, 20, 100])
def test_coverage_of_a_ratio_is_close_to_nominal(windows: int):
    generator = np.random.default_rng(windows)
    hits, trials = 0, 600
    for trial in range(trials):
        tokens = torch.from_numpy(generator.integers(20, 60, windows).astype(float))
        rate = torch.from_numpy(generator.normal(2.0, 0.5, windows))
        found = ratio_interval(rate * tokens, tokens, resamples=600, seed=trial)
        hits += found.low <= 2.0 <= found.high
    assert 0.92 <= hits / trials <= 0.98


def test_coverage_of_a_perplexity_ratio_of_skewed_windows():
    generator = np.random.default_rng(5)
    hits, trials = 0, 500
    for trial in range(trials):
        tokens = torch.full((40,), 255.0)
        extra = torch.from_numpy(generator.exponential(0.03, 40))
        before = torch.from_numpy(generator.normal(3.0, 0.4, 40)) * tokens
        found = perplexity_ratio(before, before + extra * tokens, tokens, resamples=600, seed=trial)
        hits += found.low <= math.exp(0.03) <= found.high
    assert 0.91 <= hits / trials <= 0.98


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062047), (2, 4.30265273), (3, 3.18244631), (4, 2.77644511), (7, 2.36462425), (19, 2.09302405), (500, 1.96471984)],
)
def test_student_quantile_against_the_table(degrees: int, expected: float):
    tolerance = 1e-8 if degrees < 3 else 0.01 if degrees < 7 else 1e-4
    assert student_quantile(0.975, degrees) == pytest.approx(expected, rel=tolerance)


def test_one_window_has_a_value_and_no_interval():
    assert mean_interval(torch.tensor([3.0]), torch.tensor([2.0])) == Interval(1.5)
    assert Interval(1.5).contains(99)


def test_a_value_that_is_not_finite_has_no_interval():
    found = perplexity(torch.tensor([1.0, math.inf]), torch.tensor([1.0, 1.0]))
    assert found == Interval(math.inf)


def test_no_window_is_refused():
    with pytest.raises(InputError, match="at least one window"):
        bootstrap(torch.zeros(0, 2), lambda total: total[..., 0])


def test_equal_seeds_give_equal_intervals_and_other_seeds_others():
    values = torch.randn(30, generator=torch.Generator().manual_seed(2))
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4) != mean_interval(values, seed=5)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(-3, 3), st.floats(0.1, 4))
def test_an_affine_map_moves_the_interval_with_the_values(values: list[float], shift: float, factor: float):
    data = torch.tensor(values, dtype=torch.float64)
    found, moved = mean_interval(data, resamples=100), mean_interval(data * factor + shift, resamples=100)
    for one, other in zip((found.value, found.low, found.high), (moved.value, moved.low, moved.high), strict=True):
        assert other == pytest.approx(one * factor + shift, rel=1e-9, abs=1e-9)
    assert found.low <= found.high
