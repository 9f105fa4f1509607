"""Grids: closed forms, exactness in the containers, and the range search against trying every range by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from thrifty.core import grids
from thrifty.core.grids import (
    LARGEST_SCALE,
    SHRINKS,
    SMALLEST_SCALE,
    Cells,
    Step,
    code_limits,
    column_snap,
    fit_step,
    grouped,
    limits,
    round_to,
    significant_bits,
    snap_scale,
    step_between,
)

LEVELS = (2, 3, 4, 5, 7, 8, 12, 16, 31, 32, 100, 255, 256)


def draw(seed: int, *shape: int, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul_(spread).to(dtype)


def held_bits(value: float) -> int:
    """Bits between the first and the last one of a number's significand."""
    numerator, _ = float(value).as_integer_ratio()
    return (abs(numerator) // (abs(numerator) & -abs(numerator))).bit_length()


@pytest.mark.parametrize("levels", LEVELS)
def test_a_grid_has_as_many_codes_as_levels_and_zero_is_one(levels):
    smallest, largest = code_limits(levels)
    assert largest - smallest + 1 == levels
    assert smallest <= 0 <= largest
    assert smallest + largest in (-1, 0)


@given(st.floats(2.0**-15, 2.0**12), st.sampled_from([7, 8]))
def test_a_snapped_scale_has_few_bits_and_is_the_nearest_such_number(scale, bits):
    snapped = float(snap_scale(torch.tensor([scale], dtype=torch.float64), bits)[0])
    assert held_bits(snapped) <= bits
    assert abs(snapped - scale) <= scale * 2.0**-bits
    for kind in (torch.bfloat16, torch.float16):
        assert float(torch.tensor(snapped, dtype=torch.float64).to(kind)) == snapped


def test_the_scale_of_zeros_is_one_and_scales_stay_within_their_limits():
    found = snap_scale(torch.tensor([0.0, 1e-30, SMALLEST_SCALE / 2, SMALLEST_SCALE]), 8)
    assert found.tolist() == [1.0, SMALLEST_SCALE, SMALLEST_SCALE, SMALLEST_SCALE]
    found = snap_scale(torch.tensor([LARGEST_SCALE, LARGEST_SCALE * 1.001, 65504.0, 1e38, float("inf")]), 7)
    assert found.tolist() == [LARGEST_SCALE] * 5


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", ["minmax", "mse"])
def test_scales_are_exact_in_bfloat16_and_float16(levels, symmetric, rule):
    step = fit_step(draw(levels, 9, 4, 32, spread=0.02), levels, symmetric, rule)
    bits = 7 if not symmetric and 8 < levels <= 16 else 8
    assert significant_bits(levels, symmetric) == bits
    assert max(held_bits(value) for value in step.scale.flatten().tolist()) <= bits
    for kind in (torch.bfloat16, torch.float16):
        assert torch.equal(step.scale.to(kind).float(), step.scale)


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 8, 12, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("spread", [1e-4, 0.03, 4.0])
def test_values_and_offsets_of_grids_up_to_four_bits_are_exact_in_float16(levels, symmetric, spread):
    groups = draw(levels, 20, 6, 32, spread=spread)
    step = fit_step(groups, levels, symmetric, "mse")
    values = round_to(groups, step, levels)
    assert torch.equal(values.half().float(), values)
    if step.zero_point is not None:
        lowest = (code_limits(levels)[0] - step.zero_point) * step.scale
        assert torch.equal(lowest.half().float(), lowest)


@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 3, 4, 8, 15, 16]),
    st.booleans(),
    st.sampled_from(["minmax", "mse"]),
    st.floats(1, 37),
    st.floats(-3, 3),
)
def test_no_weights_are_too_large_for_the_values_to_be_exact_in_float16(seed, levels, symmetric, rule, exponent, shift):
    groups = ((draw(seed, 2, 2, 16, dtype=torch.float64) + shift) * 10.0**exponent).float().clamp(-3e38, 3e38)
    step = fit_step(groups, levels, symmetric, rule)
    values = round_to(groups, step, levels)
    offsets = torch.zeros(()) if step.zero_point is None else (code_limits(levels)[0] - step.zero_point) * step.scale
    for held in (step.scale, values, offsets):
        assert bool(held.half().isfinite().all()) and torch.equal(held.half().float(), held)
    assert torch.equal(round_to(values, step, levels), values)


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_beyond_the_largest_grid_become_its_ends(symmetric):
    groups = torch.tensor([[[-1e9, 0.0, 1e9, 3 * LARGEST_SCALE]]])
    step = fit_step(groups, 16, symmetric)
    low, high = (float(end) * LARGEST_SCALE for end in limits(step, 16))
    assert round_to(groups, step, 16).flatten().tolist() == [low, 0.0, high, 3 * LARGEST_SCALE]
    assert low <= -7 * LARGEST_SCALE and high >= 7 * LARGEST_SCALE
    positive = fit_step(groups.abs(), 16, symmetric)
    assert round_to(groups.abs(), positive, 16).max() == (7 if symmetric else 15) * LARGEST_SCALE


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_are_positive(symmetric):
    groups = torch.tensor([[[-0.01, -0.0, 0.01, 1.0, -1.0, 0.0, -0.02, 0.3]]])
    step = fit_step(groups, 8, symmetric)
    values = round_to(groups, step, 8)
    assert int((values == 0).sum()) >= 5
    assert not bool(torch.signbit(values[values == 0]).any())


@given(
    st.integers(0, 10_000),
    st.sampled_from(LEVELS),
    st.booleans(),
    st.sampled_from(["minmax", "mse"]),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.sampled_from([-2.0, 0.0, 2.0]),
)
@example(205, 2, True, "minmax", 1e-3, 2.0)
@example(205, 2, True, "mse", 50.0, 2.0)
def test_inside_the_range_no_error_is_above_half_a_step(seed, levels, symmetric, rule, spread, shift):
    groups = (draw(seed, 3, 2, 16) + shift) * spread
    step = fit_step(groups, levels, symmetric, rule)
    low, high = (end if isinstance(end, float) else end[..., None] for end in limits(step, levels))
    scale = step.scale[..., None]
    one, other = low * scale, high * scale
    inside = (groups >= torch.minimum(one, other)) & (groups <= torch.maximum(one, other))
    error = (groups - round_to(groups, step, levels)).abs() / scale.abs()
    # Two symmetric levels are one below zero and zero itself: values that all lie above it are all outside.
    assert bool(inside.any()) or (symmetric and levels == 2 and bool((groups > 0).all()))
    assert bool((error[inside] <= 0.5 * (1 + 1e-4)).all())
    # What lies outside goes to the nearer end; the whole range leaves half a step and the rounding of the scale outside.
    if rule == "minmax":
        assert float(error.max()) <= 1 + levels * 2.0**-8


@pytest.mark.parametrize("levels", [5, 8, 16, 256])
def test_symmetric_scale_is_the_largest_magnitude_over_half_the_levels(levels):
    low, high = torch.tensor([-3.0, -0.5, -1.0]), torch.tensor([1.0, 0.7, 1.0])
    step = step_between(low, high, levels, True)
    exact = torch.tensor([3.0, 0.7, 1.0]) * 2 / (levels - 1)
    assert step.zero_point is None
    torch.testing.assert_close(step.scale, exact, rtol=2.0**-8, atol=0)
    assert torch.equal(step.scale, snap_scale(exact, 8))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_asymmetric_grids_span_the_range_and_hold_zero(levels, shift):
    groups = draw(levels, 30, 2, 16) + shift
    step = fit_step(groups, levels, False)
    smallest, largest = code_limits(levels)
    assert torch.equal(step.zero_point, step.zero_point.round())
    assert bool(((step.zero_point >= smallest) & (step.zero_point <= largest)).all())
    low, high = limits(step, levels)
    span_low, span_high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    # The zero point is rounded and the scale has 7 bits: the ends lie within half a step and the scale's error times the codes.
    slack = step.scale * (0.5 + levels * 2.0**-7)
    assert bool(((low * step.scale - span_low).abs() <= slack).all())
    assert bool(((high * step.scale - span_high).abs() <= slack).all())


@given(
    st.integers(0, 10_000),
    st.sampled_from(LEVELS),
    st.booleans(),
    st.sampled_from(["minmax", "mse"]),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.sampled_from([0.0, 2.0]),
)
def test_rounding_is_idempotent_keeps_zero_and_gives_integer_codes(seed, levels, symmetric, rule, spread, shift):
    groups = (draw(seed, 3, 2, 8) + shift) * spread
    groups[:, :, 3] = 0
    step = fit_step(groups, levels, symmetric, rule)
    values = round_to(groups, step, levels)
    assert torch.equal(round_to(values, step, levels), values)
    assert bool((values[:, :, 3] == 0).all())
    multiple = values.double() / step.scale.double()[..., None]
    codes = multiple if step.zero_point is None else multiple + step.zero_point[..., None]
    smallest, largest = code_limits(levels)
    assert torch.equal(codes, codes.round())
    assert smallest <= float(codes.min()) and float(codes.max()) <= largest


@given(st.integers(0, 10_000), st.sampled_from(LEVELS), st.booleans())
def test_rounding_gives_the_nearest_of_all_points(seed, levels, symmetric):
    groups = draw(seed, 3, 2, 8, dtype=torch.float64)
    step = fit_step(groups, levels, symmetric, "mse")
    smallest, _ = code_limits(levels)
    codes = torch.arange(levels, dtype=torch.float64) + smallest
    offset = 0 if step.zero_point is None else step.zero_point[..., None]
    points = (codes - offset) * step.scale[..., None]
    nearest = (groups[..., None] - points[:, :, None, :]).abs().amin(-1)
    torch.testing.assert_close((groups - round_to(groups, step, levels)).abs(), nearest, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [4, 11, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_searched_range_is_the_best_of_all_tried(levels, symmetric, weighted):
    groups = draw(7, 12, 3, 32) ** 3
    importance = draw(8, 3, 32).abs() + 0.01 if weighted else None
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    weights = torch.ones(3, 32) if importance is None else importance
    errors = []
    signs = (1, -1) if symmetric else (1,)
    for shrink, sign in itertools.product(SHRINKS, signs):
        step = step_between(low * shrink, high * shrink, levels, symmetric)
        step = Step(sign * step.scale, step.zero_point)
        errors.append(((groups - round_to(groups, step, levels)).square() * weights).sum(-1))
    found = fit_step(groups, levels, symmetric, "mse", importance)
    error = ((groups - round_to(groups, found, levels)).square() * weights).sum(-1)
    torch.testing.assert_close(error, torch.stack(errors).amin(0), rtol=1e-5, atol=1e-7)
    assert bool((error <= errors[0]).all())
    assert float(error.sum()) < float(errors[0].sum())


@pytest.mark.parametrize("levels", [4, 8, 16])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_code_that_a_symmetric_grid_has_more_on_one_side_is_where_the_far_weights_are(levels, side):
    groups = side * torch.linspace(-(levels // 2 - 1), levels // 2, levels)[None, None]
    step = fit_step(groups, levels, True, "mse")
    assert float(step.scale.sign()) == -side
    turned = Step(-step.scale, None)
    error, other = ((round_to(groups, grid, levels) - groups).square().sum() for grid in (step, turned))
    assert float(error) < 0.5 * float(other)
    whole = Step(torch.full((1, 1), -side), None)
    assert torch.equal(round_to(groups, whole, levels), groups)


def test_a_scale_keeps_its_sign_when_it_is_snapped():
    scale = torch.tensor([0.3, 1.0, 2.0**-20, 2.0**13])
    for bits in (7, 8):
        assert torch.equal(snap_scale(-scale, bits), -snap_scale(scale, bits))


def test_importance_moves_the_searched_range_towards_the_inputs_that_count():
    groups = torch.full((1, 1, 32), 0.13)
    groups[0, 0, 0] = 1.0
    heavy = fit_step(groups, 8, True, "mse", torch.eye(32)[:1] * 1000 + 1e-3)
    light = fit_step(groups, 8, True, "mse", torch.eye(32)[5:6] * 1000 + 1e-3)
    heavy_error, light_error = ((round_to(groups, step, 8) - groups)[0, 0].abs() for step in (heavy, light))
    assert float(heavy_error[0]) < float(light_error[0])
    assert float(light_error[5]) < float(heavy_error[5])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", ["minmax", "mse"])
def test_groups_of_zeros_and_of_one_constant(symmetric, rule):
    groups = torch.stack([torch.zeros(8), torch.full((8,), 0.75), torch.full((8,), -0.75)])[:, None]
    step = fit_step(groups, 16, symmetric, rule)
    values = round_to(groups, step, 16)
    assert float(step.scale[0]) == 1.0
    assert torch.equal(values[0], torch.zeros(1, 8))
    # A constant lies at an end of the span: at most half a step (symmetric: +max lies half a step outside) or the scale's rounding away.
    assert bool(((values - groups).abs() <= 0.6 * step.scale.abs()[..., None]).all())
    if not symmetric:
        torch.testing.assert_close(values, groups, rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_finer_groups_have_no_coarser_steps(symmetric):
    weight = draw(5, 16, 128)
    wide, fine = fit_step(grouped(weight, 0), 16, symmetric), fit_step(grouped(weight, 16), 16, symmetric)
    assert wide.scale.shape == (16, 1) and fine.scale.shape == (16, 8)
    assert bool((fine.scale <= wide.scale).all())


def test_grouped_cuts_a_row_into_consecutive_inputs():
    values = torch.arange(24.0).reshape(2, 12)
    assert grouped(values, 4)[1, 2].tolist() == [20.0, 21.0, 22.0, 23.0]
    assert torch.equal(grouped(values, 0)[:, 0], values)


@pytest.mark.parametrize("levels", [3, 16, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [0, 4, 12])
def test_snapping_columns_one_by_one_equals_rounding_the_matrix(levels, symmetric, group_size):
    weight = draw(11, 7, 24)
    step = fit_step(grouped(weight, group_size), levels, symmetric)
    other = weight * 1.7 + 0.1
    snap = column_snap(Cells.of(step, levels, group_size, 24))
    found = torch.empty(24, 7)
    for index in range(24):
        column = other[:, index].contiguous()
        kept = column.clone()
        snap(column, index, found[index])
        assert torch.equal(column, kept)
    assert torch.equal(found.T, round_to(grouped(other, group_size), step, levels).reshape(7, 24))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_may_be_cut_into_rows(symmetric, monkeypatch):
    groups, importance = draw(12, 13, 4, 16) ** 3, draw(13, 4, 16).square()
    whole = fit_step(groups, 8, symmetric, "mse", importance)
    for row in range(13):
        alone = fit_step(groups[row : row + 1], 8, symmetric, "mse", importance)
        assert torch.equal(alone.scale[0], whole.scale[row])
    for values in (1, 64, 200):
        monkeypatch.setattr(grids, "CHUNK", values)
        cut = fit_step(groups, 8, symmetric, "mse", importance)
        assert torch.equal(cut.scale, whole.scale)
        assert symmetric or torch.equal(cut.zero_point, whole.zero_point)
