"""What every way to share a budget among the parts of a model holds: the contract of the axis."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.curves import MEANS, curves, weights
from thrifty.base.errors import InputError
from thrifty.pipeline.catalogue import load_methods
from thrifty.weights.allocate.optimal import Optimal
from thrifty.weights.allocate.uniform import Uniform
from thrifty.weights.base import Sharing

SHARINGS = [example for method in load_methods().values() if issubclass(method, Sharing) for example in method.examples()]


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda sharing: sharing.name)
@given(seed=st.integers(0, 10_000), mean=MEANS)
def test_the_budget_is_kept_and_the_sums_are_those_of_the_options(sharing, seed, mean):
    parts = curves(seed)
    budget = mean * weights(parts)
    found = sharing.share(parts, budget)
    assert list(found.options) == [curve.name for curve in parts]
    assert found.cost == sum(curve.costs[found.options[curve.name]] for curve in parts) <= budget * (1 + 1e-12)
    assert found.loss == pytest.approx(sum(curve.losses[found.options[curve.name]] for curve in parts))
    assert found == sharing.share(parts, budget)


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda sharing: sharing.name)
def test_the_ends_of_the_budget_and_less_than_that(sharing):
    parts = curves(3)
    assert set(sharing.share(parts, 2 * weights(parts)).options.values()) == {0}
    assert set(sharing.share(parts, 8 * weights(parts)).options.values()) == {3}
    with pytest.raises(InputError, match="too small"):
        sharing.share(parts, 1.99 * weights(parts))


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda sharing: sharing.name)
def test_the_order_of_the_options_does_not_matter(sharing):
    parts = curves(4)
    backwards = [type(curve)(curve.name, curve.size, curve.losses[::-1], curve.costs[::-1]) for curve in parts]
    one, other = (sharing.share(found, 3.3 * weights(parts)) for found in (parts, backwards))
    assert {name: 3 - option for name, option in other.options.items()} == one.options


@given(seed=st.integers(0, 10_000), mean=MEANS)
def test_the_best_is_better_than_all_others(seed, mean):
    parts = curves(seed)
    best = Optimal().share(parts, mean * weights(parts))
    assert best.gap == 0
    for sharing in SHARINGS:
        assert best.loss <= sharing.share(parts, mean * weights(parts)).loss * (1 + 1e-12)


@given(seed=st.integers(0, 10_000), mean=MEANS)
def test_the_best_of_five_parts_is_that_of_all_choices(seed, mean):
    parts = curves(seed, parts=5)
    budget = mean * weights(parts)
    tried = [
        sum(curve.losses[option] for curve, option in zip(parts, options, strict=True))
        for options in itertools.product(range(4), repeat=5)
        if sum(curve.costs[option] for curve, option in zip(parts, options, strict=True)) <= budget * (1 + 1e-12)
    ]
    assert Optimal().share(parts, budget).loss == pytest.approx(min(tried), rel=1e-12)


def test_uniform_takes_the_best_option_that_all_can_have():
    parts = curves(5)
    assert set(Uniform().share(parts, 3.99 * weights(parts)).options.values()) == {1}
    assert set(Uniform().share(parts, 4 * weights(parts)).options.values()) == {2}
