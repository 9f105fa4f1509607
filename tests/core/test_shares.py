"""Shares: the mean holds whatever the parts are, and bounds give what they take to the other parts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.shares import scaled_to_mean, shifted_to_mean, spread, stretched

PARTS = st.lists(st.tuples(st.floats(0.1, 2), st.integers(1, 100)), min_size=1, max_size=8)


def mean(shares, sizes):
    return sum(share * size for share, size in zip(shares, sizes, strict=True)) / sum(sizes)


@given(PARTS, st.floats(0, 0.99))
def test_the_mean_holds_after_clipping(parts, wanted):
    values, sizes = zip(*parts, strict=True)
    for made in (scaled_to_mean, shifted_to_mean):
        found = made(values, sizes, wanted, 0.9)
        assert mean(found, sizes) == pytest.approx(wanted, abs=1e-9)
        assert all(0 <= share <= max(0.9, wanted) + 1e-12 for share in found)
        order = sorted(range(len(values)), key=values.__getitem__)
        assert all(found[low] <= found[high] + 1e-12 for low, high in pairwise(order))


def test_within_bounds_it_is_the_closed_form():
    relative, sizes = [0.7, 1.0, 1.3], [4, 2, 2]
    scale = 0.5 * sum(sizes) / sum(r * size for r, size in zip(relative, sizes, strict=True))
    assert scaled_to_mean(relative, sizes, 0.5, 0.998) == pytest.approx([scale * r for r in relative])
    offsets = [-0.16, 0.0, -0.04]
    shift = 0.6 - mean(offsets, sizes)
    assert shifted_to_mean(offsets, sizes, 0.6, 0.998) == pytest.approx([shift + offset for offset in offsets])
    # the third would get 1.04: what it may not have, the others get in proportion
    found = scaled_to_mean([0.7, 1.0, 1.3], [1, 1, 1], 0.8, 0.95)
    assert found == pytest.approx([(2.4 - 0.95) * 0.7 / 1.7, (2.4 - 0.95) / 1.7, 0.95])


def test_scores_that_do_not_differ_share_evenly():
    assert stretched([2.0, 2.0]) == [0.5, 0.5] and stretched([1.0, 3.0, 2.0]) == [0.0, 1.0, 0.5]
    assert stretched([1.0, math.nan, 3.0]) == [0.0, 0.5, 1.0] and stretched([math.nan, math.inf]) == [0.5, 0.5]
    assert scaled_to_mean([0.0, 0.0], [1, 2], 0.3, 0.9) == [0.3, 0.3]


@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=9), st.floats(0.01, 1), st.floats(1, 9))
def test_a_spread_is_a_straight_line_from_least_to_most(scores, least, most):
    low, high = min(scores), max(scores)
    line = [least + (score - low) / (high - low) * (most - least) if high > low else 1.0 for score in scores]
    assert spread(scores, least, most) == pytest.approx(line)


def test_what_is_no_number_stays_apart_from_a_spread():
    assert spread([2.0, math.nan, 4.0, math.inf, 3.0], 0.5, 2.5) == pytest.approx([0.5, 1.0, 2.5, 1.0, 1.5])
    assert spread([math.nan, math.inf], 0.5, 1.5) == [1.0, 1.0] == spread([3.0, 3.0], 0.5, 1.7)
    assert spread([], 0.5, 1.5) == []
