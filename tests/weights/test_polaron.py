"""POLARON's policy: greedy steps, the ends first, and what its sheet says must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.weights.curves import MEANS, curves, weights
from thrifty.base.records import Curve
from thrifty.weights.allocate.polaron import Polaron
from thrifty.weights.allocate.uniform import Uniform


def with_float(parts: list[Curve]) -> list[Curve]:
    """A last candidate that loses nothing, at 16 bits."""
    return [replace(curve, losses=(*curve.losses, 0.0), costs=(*curve.costs, 16.0 * curve.size)) for curve in parts]


def plain(parts: list[Curve], budget: float) -> list[int]:
    """The policy word by word, for options in the order of falling losses."""
    level = [0] * len(parts)
    spent = sum(curve.costs[0] for curve in parts)

    def step(part: int) -> tuple[float, float]:
        now, then = level[part], level[part] + 1
        price = parts[part].costs[then] - parts[part].costs[now]
        return (parts[part].losses[now] - parts[part].losses[then]) / price, price

    for part in sorted({0, len(parts) - 1}, key=lambda part: (step(part)[1], -step(part)[0] * step(part)[1])):
        if spent + step(part)[1] <= budget:
            spent, level[part] = spent + step(part)[1], 1
    while True:
        open_parts = [part for part in range(len(parts)) if level[part] + 1 < len(parts[part].costs) and spent + step(part)[1] <= budget]
        if not open_parts:
            return level
        best = max(open_parts, key=lambda part: step(part)[0])
        spent, level[best] = spent + step(best)[1], level[best] + 1


@given(st.integers(0, 10_000), MEANS)
@example(0, 7.999999999999999)
def test_it_is_the_policy(seed, mean):
    parts = [replace(curve, losses=tuple(sorted(curve.losses, reverse=True))) for curve in curves(seed)]
    budget = mean * weights(parts)
    allowed = budget * (1 + 1e-12)  # what sums of costs are off by
    assert list(Polaron().share(parts, budget).options.values()) == plain(parts, allowed)


def test_the_ends_start_one_step_higher():
    parts = [Curve(str(part), 1, (1.0, 0.9, 0.0), (2.0, 3.0, 4.0)) for part in range(4)]
    assert list(Polaron().share(parts, 10).options.values()) == [1, 0, 0, 1]
    assert list(Polaron().share(parts, 8).options.values()) == [0, 0, 0, 0]


def test_no_loss_allowed_gives_floats_to_all():
    parts = with_float(curves(1))
    found = Polaron(tolerance=0).share(parts, 16 * weights(parts))
    assert set(found.options.values()) == {4} and found.loss == 0


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_tolerance_never_costs_more_and_is_kept(seed, one, other):
    parts = with_float(curves(seed))
    most = Polaron(tolerance=1e9).share(parts, 16 * weights(parts)).loss
    strict, loose = (Polaron(tolerance=share * most).share(parts, 16 * weights(parts)) for share in sorted((one, other)))
    assert loose.cost <= strict.cost <= 16 * weights(parts)
    assert strict.loss <= min(one, other) * most * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("bits", [3, 4])
def test_it_loses_less_than_equal_bits(bits):
    for seed in range(20):
        parts = curves(seed, parts=24)
        budget = bits * weights(parts)
        assert Polaron().share(parts, budget).loss < 0.8 * Uniform().share(parts, budget).loss
