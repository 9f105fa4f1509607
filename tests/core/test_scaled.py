"""Scales of small number formats: what the standards say, exact in their containers, and `mse` never worse than `minmax`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.core.formats import FLOATS, fixed_format
from thrifty.core.scaled import LARGEST, SMALLEST, fit_scales, floor_power, round_to

RULES = ("real", "power_of_two", "e4m3")


def error(groups: torch.Tensor, rule: str, form, range_rule: str, importance: torch.Tensor | None = None) -> torch.Tensor:
    scales = fit_scales(groups, form, rule, range_rule, importance)
    squares = (round_to(groups, scales.local, form) - groups).square()
    return (squares if importance is None else squares * importance).sum(-1)


@given(st.floats(2.0**-90, 2.0**90))
def test_a_power_of_two_is_the_largest_that_is_not_above(value):
    found = float(floor_power(torch.tensor(value, dtype=torch.float64)))
    assert math.log2(found).is_integer() and found <= value < 2 * found


def test_powers_of_two_stay_within_what_containers_hold():
    found = floor_power(torch.tensor([0.0, 1e-38, 1e38, 1.0, 0.999]))
    assert found.tolist() == [1.0, SMALLEST, LARGEST, 1.0, 0.5]


@given(st.integers(0, 10_000), st.sampled_from(sorted(FLOATS)), st.sampled_from([1e-3, 1.0, 300.0]))
def test_mx_scales_are_those_of_the_specification(seed, name, spread):
    """X = 2^(floor(log2 max |v|) - emax), whatever the values are; a block of zeros may have any."""
    form = FLOATS[name]()
    groups = draw(seed, 3, 2, 32, dtype=torch.float32) * spread
    groups[0, 0] = 0
    scales = fit_scales(groups, form, "power_of_two")
    emax = math.floor(math.log2(form.largest))
    for most, scale in zip(groups.abs().amax(-1).flatten().tolist(), scales.local.flatten().tolist(), strict=True):
        assert scale == (2.0 ** (math.floor(math.log2(most)) - emax) if most else 1.0)
    assert scales.whole is None


@given(st.integers(0, 10_000), st.sampled_from([1e-4, 1.0, 300.0]))
def test_nvfp4_scales_are_floats_of_8_bits_over_one_power_of_two(seed, spread):
    groups = draw(seed, 3, 4, 16, dtype=torch.float32) * spread
    groups[0] *= 1e-6
    groups[1, 0] = 0
    scales = fit_scales(groups, FLOATS["e2m1"](), "e4m3")
    held = scales.local * scales.whole
    assert math.log2(scales.whole).is_integer()
    assert 224 <= float(held.max()) <= 448
    assert torch.equal(held.to(torch.float8_e4m3fn).float(), held) and bool((held > 0).all())
    exact = groups.abs().amax(-1) / 6
    assert bool(((scales.local / exact)[2] - 1).abs().max() <= 2.0**-4)


@pytest.mark.parametrize("name", FLOATS)
def test_real_scales_reach_to_the_largest_number_and_fit_bfloat16(name):
    form, groups = FLOATS[name](), draw(1, 6, 4, 32, dtype=torch.float32) * 0.02
    scale = fit_scales(groups, form, "real").local
    assert torch.equal(scale.bfloat16().float(), scale)
    assert bool(((groups.abs().amax(-1) / scale / form.largest - 1).abs() <= 2.0**-8).all())


def test_fixed_point_has_the_least_step_that_holds_all():
    groups = torch.tensor([[[0.3, -0.9]], [[1.0, 0.0]], [[-3.99, 0.0]], [[0.0, 0.0]]])
    assert fit_scales(groups, fixed_format(4), "power_of_two").local.flatten().tolist() == [2.0**-3, 2.0**-2, 2.0**-1, 1.0]


@given(st.integers(0, 10_000), st.sampled_from(sorted(FLOATS)), st.sampled_from(RULES), st.booleans())
def test_the_search_never_loses_to_the_first_scale(seed, name, rule, weighted):
    groups = draw(seed, 5, 3, 16, dtype=torch.float32) * 0.05
    importance = draw(seed + 1, 3, 16, dtype=torch.float32).square() if weighted else None
    found, first = (error(groups, rule, FLOATS[name](), how, importance) for how in ("mse", "minmax"))
    assert bool((found <= first * (1 + 1e-5)).all())


def test_the_search_finds_better_scales():
    groups = draw(3, 64, 4, 32, dtype=torch.float32)
    for rule in RULES:
        assert float(error(groups, rule, FLOATS["e2m1"](), "mse").sum() / error(groups, rule, FLOATS["e2m1"](), "minmax").sum()) < 0.97


def test_rows_are_searched_alone():
    """However many there are at once."""
    groups, form = draw(4, 3000, 4, 16, dtype=torch.float32), FLOATS["e2m1"]()
    whole = fit_scales(groups, form, "real", "mse").local
    assert torch.equal(whole[:7], fit_scales(groups[:7], form, "real", "mse").local)
    assert torch.equal(whole[-7:], fit_scales(groups[-7:], form, "real", "mse").local)
