"""The scale found by sorting is the best of all: against every assignment of codes, and against every scale that a container holds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.core.grids import LARGEST_SCALE, SMALLEST_SCALE, snap_scale
from thrifty.core.least_squares import SCALE_BITS, least_squares_scale

MAGNITUDES = ((0, 1), (1,), (1, 3), (1, 3, 5, 7))


def error(groups: torch.Tensor, scale: torch.Tensor, magnitudes: tuple[float, ...], importance: torch.Tensor | None = None) -> torch.Tensor:
    """Squared error of the nearest points of each group."""
    levels = torch.tensor(magnitudes, dtype=groups.dtype)
    nearest = (groups.abs()[..., None] - scale[..., None, None] * levels).abs().amin(-1).square()
    return (nearest if importance is None else nearest * importance).sum(-1)


@given(st.integers(0, 10_000), st.sampled_from(MAGNITUDES), st.booleans(), st.sampled_from([1e-3, 1.0, 40.0]))
def test_no_assignment_of_codes_has_a_better_scale(seed, magnitudes, weighted, spread):
    groups = spread * draw(seed, 1, 1, 5)
    importance = draw(seed + 1, 1, 5).square() if weighted else torch.ones(1, 5, dtype=torch.float64)
    codes = torch.tensor(list(product(magnitudes, repeat=5)), dtype=torch.float64)
    top, bottom = (codes * groups[0, 0].abs() * importance[0]).sum(1), (codes.square() * importance[0]).sum(1)
    scales = snap_scale(torch.where(bottom > 0, top / bottom, 0.0), SCALE_BITS)
    best = ((groups[0, 0].abs() - scales[:, None] * codes).square() * importance[0]).sum(1).min()
    found = least_squares_scale(groups, magnitudes, importance)
    assert float(error(groups, found, magnitudes, importance)) <= float(best) * (1 + 1e-12)


@pytest.mark.parametrize("magnitudes", MAGNITUDES)
def test_no_scale_that_containers_hold_is_better(magnitudes):
    """All of them between a part of the usual weight and a multiple of the largest one."""
    groups = draw(2, 12, 2, 24)
    importance = draw(3, 2, 24).square()
    fractions = torch.arange(2 ** (SCALE_BITS - 1), 2**SCALE_BITS, dtype=torch.float64)
    every = torch.cat([torch.ldexp(fractions, torch.tensor(power - SCALE_BITS)) for power in range(-5, 4)])
    least = torch.stack([error(groups, scale.expand(12, 2), magnitudes, importance) for scale in every]).amin(0)
    found = error(groups, least_squares_scale(groups, magnitudes, importance), magnitudes, importance)
    assert bool((found <= least * (1 + 1e-12)).all())


@pytest.mark.parametrize("magnitudes", MAGNITUDES)
def test_scales_fit_containers_whatever_the_values_are(magnitudes):
    groups = draw(4, 6, 3, 16, dtype=torch.float32) * torch.tensor([0, 1e-9, 1e-3, 1.0, 300.0, 1e7])[:, None, None]
    scale = least_squares_scale(groups, magnitudes)
    assert scale.dtype == torch.float32 and torch.equal(scale.bfloat16().float(), scale)
    assert bool((scale[0] == 1).all())
    assert bool((scale >= SMALLEST_SCALE).all() and (scale <= LARGEST_SCALE).all())


@pytest.mark.parametrize("magnitudes", MAGNITUDES)
def test_what_lies_on_the_grid_is_found_again(magnitudes):
    generator = torch.Generator().manual_seed(0)
    codes = torch.tensor(magnitudes, dtype=torch.float32)[torch.randint(0, len(magnitudes), (8, 2, 32), generator=generator)]
    codes = codes * torch.sign(torch.randn(8, 2, 32, generator=generator))
    scale = snap_scale(torch.exp2(torch.rand(8, 2, generator=generator) * 12 - 8), SCALE_BITS)
    assert torch.equal(least_squares_scale(codes * scale[..., None], magnitudes), scale)


def test_groups_of_which_nothing_matters_are_fitted_as_if_all_did():
    groups = draw(5, 4, 2, 16)
    importance = torch.stack([torch.zeros(16), torch.ones(16)])
    assert torch.equal(least_squares_scale(groups, (0, 1), importance), least_squares_scale(groups, (0, 1)))


def test_rows_are_fitted_alone():
    """However many there are at once."""
    groups = draw(6, 3000, 4, 16, dtype=torch.float32)
    whole = least_squares_scale(groups, (1, 3))
    assert torch.equal(whole[:7], least_squares_scale(groups[:7], (1, 3)))
    assert torch.equal(whole[-7:], least_squares_scale(groups[-7:], (1, 3)))
