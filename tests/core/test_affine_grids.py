"""Half-quadratic splitting beside a plain rendering of it, and what containers hold of its numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.core.affine_grids import Line, Splitting, fit_line, snap_offset
from thrifty.core.grids import SMALLEST_SCALE, snap_scale

LEVELS = st.sampled_from([4, 8, 16, 256])


def heavy(seed: int, out: int, groups: int, size: int) -> Tensor:
    """Weights most of which are small and a few of which are not: normal ones over the root of a mean square of three."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(4, out, groups, size, generator=generator)
    return parts[0] / parts[1:].square().mean(0).sqrt()


def distance(groups: Tensor, line: Line, levels: int) -> Tensor:
    """Mean |w - v| of each group."""
    return (groups - line.values(line.codes(groups, levels))).abs().mean(-1)


def split(group: list[float], levels: int, splitting: Splitting) -> float:
    """The least mean |w - v| on the way, entry by entry, with numbers of any precision; the scale alone is as containers hold it."""
    size = math.sqrt(sum(w * w for w in group) / len(group))
    low, high, scale = -(levels // 2), (levels - 1) // 2, (max(group) - min(group)) / (levels - 1)
    scale = float(snap_scale(torch.tensor(scale), 8))
    offset, strength, least = (max(group) + min(group)) / 2 + scale / 2, splitting.strength, math.inf
    for _ in range(splitting.iterations + 1):
        codes = [min(max(round((w - offset) / scale), low), high) for w in group]
        errors = [w - q * scale - offset for w, q in zip(group, codes, strict=True)]
        least = min(least, sum(map(abs, errors)) / len(group))
        shrunk = []
        for error in errors:
            far = abs(error) / size
            rest = max(far - far ** (splitting.norm - 1) / strength, 0.0) * size if far else 0.0
            shrunk.append(math.copysign(rest, error))
        offset = sum(w - e - q * scale for w, e, q in zip(group, shrunk, codes, strict=True)) / len(group)
        strength *= splitting.growth
    return least


@pytest.mark.parametrize("levels", [4, 8, 16])
@pytest.mark.parametrize("norm", [0.4, 0.7, 1.0])
def test_it_is_half_quadratic_splitting(levels: int, norm: float) -> None:
    """What is found is held to 1/16 of a step, which costs single groups a little; all of them together are as good."""
    groups, splitting = heavy(0, 40, 2, 64), Splitting(norm)
    found = distance(groups, fit_line(groups, levels, "minmax", splitting), levels)
    expected = torch.tensor([[split(group.tolist(), levels, splitting) for group in row] for row in groups])
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    assert float(found.mean() / expected.mean()) == pytest.approx(1, abs=0.003)


@given(st.integers(0, 10_000), LEVELS, st.sampled_from([0.3, 0.7, 1.0]))
def test_the_best_offset_on_the_way_stays(seed: int, levels: int, norm: float) -> None:
    groups = heavy(seed, 3, 2, 64)
    middle = fit_line(groups, levels, "minmax", Splitting(norm, iterations=0))
    few, many = (fit_line(groups, levels, "minmax", Splitting(norm, iterations=count)) for count in (3, 20))
    assert torch.equal(few.scale, middle.scale) and torch.equal(many.scale, middle.scale)
    first, second, third = (distance(groups, line, levels) for line in (middle, few, many))
    assert bool((second <= first).all()) and bool((third <= first).all())


@pytest.mark.parametrize(("levels", "gain"), [(16, 0.95), (8, 0.93), (4, 0.84)])
def test_heavy_tails_lose_less_than_on_the_middle_of_the_range_and_parts_of_the_range_gain_more(levels: int, gain: float) -> None:
    groups = heavy(1, 200, 4, 64)
    middle, whole = (fit_line(groups, levels, "minmax", Splitting(iterations=count)) for count in (0, 20))
    losses = [float(distance(groups, line, levels).mean()) for line in (middle, whole)]
    assert losses[1] < gain * losses[0]
    squares = [
        float((groups - line.values(line.codes(groups, levels))).square().mean())
        for line in (whole, fit_line(groups, levels, "mse", Splitting()))
    ]
    assert squares[1] < 0.96 * squares[0]


def test_errors_of_inputs_that_matter_more_pull_more() -> None:
    groups, importance = heavy(2, 50, 1, 32), torch.ones(1, 32)
    importance[:, :4] = 100
    plain, weighted = (fit_line(groups, 4, "mse", Splitting(), weight) for weight in (None, importance))
    errors = [(groups - line.values(line.codes(groups, 4))).square() for line in (plain, weighted)]
    assert float(errors[1][..., :4].mean()) < 0.5 * float(errors[0][..., :4].mean())
    same = fit_line(groups, 4, "mse", Splitting(), torch.full((1, 32), 4.0))
    assert torch.equal(same.scale, plain.scale) and torch.equal(same.offset, plain.offset)


@given(st.integers(0, 10_000), LEVELS, st.integers(-6, 6))
def test_twice_the_weights_have_twice_the_grid(seed: int, levels: int, power: int) -> None:
    groups = heavy(seed, 2, 2, 32)
    line, other = (fit_line(part, levels, "minmax", Splitting()) for part in (groups, groups * 2.0**power))
    assert torch.equal(other.scale, line.scale * 2.0**power) and torch.equal(other.offset, line.offset * 2.0**power)


@given(st.integers(0, 10_000), st.floats(-60, 60), st.sampled_from([1e-4, 0.02, 1.0, 200.0]))
def test_containers_hold_scales_offsets_and_lowest_values(seed: int, middle: float, spread: float) -> None:
    """And every value is exact in float32, in whichever order it is put together."""
    groups = (heavy(seed, 3, 2, 32) + middle) * spread
    line = fit_line(groups, 16, "minmax", Splitting())
    for held in (line.scale, line.offset):
        assert torch.equal(held.to(torch.bfloat16).float(), held)
    lowest = line.offset - 8 * line.scale
    assert torch.equal(lowest.to(torch.float16).float(), lowest) or float(groups.abs().max()) > 2**13
    codes = line.codes(groups, 16)
    exact = codes.double() * line.scale[..., None].double() + line.offset[..., None].double()
    assert torch.equal(line.values(codes).double(), exact)
    assert torch.equal(((codes + 8) * line.scale[..., None] + lowest[..., None]).double(), exact)


@given(st.floats(2.0**-16, 2.0**12), st.floats(-3e4, 3e4))
def test_an_offset_is_held_to_a_sixteenth_of_a_step(scale: float, offset: float) -> None:
    step = snap_scale(torch.tensor([scale]), 8)
    held = snap_offset(torch.tensor([offset]), step)
    limit = 56 * 2.0 ** math.frexp(float(step))[1]
    if abs(offset) < 8 * float(step):
        assert abs(float(held) - offset) <= float(step) / 31.9
    assert abs(float(held) - max(-limit, min(limit, offset))) <= float(step) / 31.9 + abs(offset) / 255


def test_groups_far_from_zero_and_groups_of_one_number() -> None:
    groups = torch.tensor([[0.5] * 32, [-3e-3] * 32, [0.0] * 32, [0.5 + 1e-3 * number for number in range(32)]])[:, None]
    line = fit_line(groups, 16, "minmax", Splitting())
    error = (groups - line.values(line.codes(groups, 16))).abs().amax(-1)[:, 0]
    assert float(error[2]) == 0
    assert bool((error[:2] <= groups[:2, 0, 0].abs() / 256).all())
    assert float(error[3]) <= float(line.scale[3, 0])
    assert bool((line.scale >= SMALLEST_SCALE).all())
