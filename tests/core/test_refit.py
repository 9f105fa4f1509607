"""Fitting scales to codes against trying every scale that a container holds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw, loss, problem
from thrifty.base.records import Problem
from thrifty.core.formats import FLOATS
from thrifty.core.grids import Range, code_limits, grouped, snap_scale
from thrifty.core.scaled import ScaleRule, nearest_scale
from thrifty.weights.base import hold
from thrifty.weights.target.both import Both
from thrifty.weights.target.fixed import Fixed
from thrifty.weights.target.float import SmallFloat
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.posit import Posit

GRIDS = (Int(2, 8, False), Int(2, 8, True, "mse"), Int(3, 0, False, "mse"), Int(4, 16), Int(8, 8, False), Int(group_size=8, levels=6))
FORMATS = (SmallFloat(group_size=8), SmallFloat("e2m1", 16, "e4m3"), SmallFloat("e2m3", 8, "power_of_two"), Posit(5, 1, 8), Fixed(4, 8))


def start(task: Problem, target) -> tuple:
    points = target.fit(task.weight)
    return points, points.project(task.weight)


def every_scale(near: float, bits: int) -> torch.Tensor:
    """All numbers of `bits` significant bits from a sixteenth of one to four times of it."""
    whole = torch.arange(2 ** (bits - 1), 2**bits, dtype=torch.float64)
    exponent = torch.frexp(torch.tensor(near)).exponent
    return torch.cat([torch.ldexp(whole, exponent - bits + power) for power in range(-4, 3)])


@pytest.mark.parametrize("rule", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_one_group_gets_the_best_of_all_scales_and_zero_points_in_reach(bits: int, symmetric: bool, rule: Range):
    moved, below = 0, 0
    for seed in range(12):
        task, target = problem(seed, out=1, width=8), Int(bits, 0, symmetric, rule)
        points, values = start(task, target)
        _, found = points.refit(values, task.weight, task.gram)
        scale, multiple = float(points.step.scale), values / points.step.scale
        smallest, largest = code_limits(target.level_count)
        least = loss(task.weight, values, task.gram)
        for shift in (0,) if symmetric else (-1, 0, 1):
            if not symmetric and not smallest <= float(points.step.zero_point) + shift <= largest:
                continue
            codes = torch.where(multiple != 0, multiple - shift, 0.0)
            for tried in every_scale(abs(scale), 7 if bits == 4 and not symmetric else 8).tolist():
                least = min(least, loss(task.weight, codes * math.copysign(tried, scale), task.gram))
        assert loss(task.weight, found, task.gram) == pytest.approx(least, rel=1e-9)
        moved += not torch.equal(values, found)
        below += scale < 0
    assert moved > 8
    assert (below > 0) == (symmetric and rule == "mse")


def test_without_correlation_the_scale_is_the_weighted_mean_of_the_quotients():
    task = Problem(draw(1, 6, 16), torch.diag(draw(2, 16).exp()), 64)
    points, values = start(task, Int(3, 8))
    fitted, found = points.refit(values, task.weight, task.gram)
    codes, weight, energy = (grouped(tensor, 8) for tensor in (values, task.weight, task.gram.diagonal().expand_as(values)))
    codes = codes / points.step.scale[..., None]
    expected = (energy * weight * codes).sum(-1) / (energy * codes.square()).sum(-1)
    torch.testing.assert_close(fitted.step.scale, snap_scale(expected, 8), rtol=1e-12, atol=0)
    torch.testing.assert_close(grouped(found, 8), codes * fitted.step.scale[..., None], rtol=1e-12, atol=0)


@given(st.integers(0, 10_000), st.sampled_from((*GRIDS, *FORMATS, Both(NM(), Int(3, 8, False)))))
def test_the_loss_does_not_rise_and_the_result_is_a_point_of_the_new_set(seed: int, target):
    task = problem(seed, out=5, width=16)
    points, values = start(task, target)
    fitted, found = points.refit(values, task.weight, task.gram)
    assert loss(task.weight, found, task.gram) <= loss(task.weight, values, task.gram) * (1 + 1e-12)
    assert torch.equal(found[values == 0], torch.zeros_like(found[values == 0]))
    assert torch.equal(fitted.encode(found).decode().double(), found.float().double())
    grid = fitted.grid if isinstance(target, Both) else fitted
    torch.testing.assert_close(grid.project(found), found, rtol=0, atol=0)


@pytest.mark.parametrize("target", [*GRIDS, *FORMATS[:2]], ids=str)
def test_it_pays_on_scales_that_were_fitted_to_the_largest_weight(target):
    gains = []
    for seed in range(4):
        task = problem(seed, out=12, width=16)
        points, values = start(task, target)
        _, found = points.refit(values, task.weight, task.gram)
        gains.append(loss(task.weight, found, task.gram) / loss(task.weight, values, task.gram))
    assert max(gains) < 1
    assert sum(gains) / 4 < 0.97


@pytest.mark.parametrize("target", FORMATS[2:], ids=str)
def test_powers_of_two_move_by_powers_of_two(target):
    task = Problem(draw(7, 12, 16), torch.diag(draw(8, 16).exp()), 64)
    points, values = start(task, target)
    assert torch.equal(points.refit(values, task.weight, task.gram)[1], values)
    for power in (0.25, 2.0, 8.0):
        fitted, found = points.refit(values, power * task.weight, task.gram)
        assert torch.equal(found, power * values)
        assert torch.equal(fitted.scales.local, power * points.scales.local)


@pytest.mark.parametrize("target", [Int(3, 8, False), SmallFloat(group_size=8)], ids=str)
def test_what_is_held_at_zero_stays_there(target):
    task = problem(3, out=12, width=32)
    mask = draw(4, 12, 32) > -0.5
    points = hold(target, mask).fit(task.weight)
    values = points.project(task.weight)
    fitted, found = points.refit(values, task.weight, task.gram)
    assert bool((found[~mask] == 0).all()) and not torch.equal(found, values)
    assert torch.equal(fitted.project(found), found)


def test_sets_that_share_nothing_stay_as_they_are():
    task = problem(5)
    points, values = start(task, NM())
    again, found = points.refit(values, task.weight, task.gram)
    assert again is points and found is values
    held = hold(NM(), values != 0).fit(task.weight)
    assert held.refit(values, task.weight, task.gram)[0] is held


@pytest.mark.parametrize("rule", ["real", "power_of_two", "e4m3"])
def test_the_nearest_scale_is_the_nearest(rule: ScaleRule):
    exact = torch.logspace(-2, 2, 400, dtype=torch.float64)
    whole = 2.0 if rule == "e4m3" else None
    found = nearest_scale(exact, rule, whole)
    if rule == "real":
        every = torch.cat([every_scale(power, 8) for power in (0.0078125, 0.03125, 0.125, 0.5, 2.0, 8.0, 32.0, 128.0)])
    elif rule == "power_of_two":
        every = 2.0 ** torch.arange(-9, 9, dtype=torch.float64)
    else:
        numbers = FLOATS["e4m3"]().numbers.double() / 2
        every = numbers[numbers > 0]
    nearest = (every[:, None] - exact).abs().amin(0)
    torch.testing.assert_close((found - exact).abs(), nearest, rtol=1e-9, atol=1e-12)


def test_a_group_of_zeros_and_inputs_that_were_never_seen_change_nothing():
    task, target = problem(6, out=4, width=16), Int(3, 8, False)
    weight = task.weight.clone()
    weight[:, :8] = 0
    points = target.fit(weight)
    values = points.project(weight)
    _, found = points.refit(values, weight, task.gram)
    assert bool(found.isfinite().all()) and bool((found[:, :8] == 0).all())
    _, found = points.refit(values, weight, torch.zeros_like(task.gram))
    assert torch.equal(found, values)
