"""Grids from the smallest to the largest value of a group: against numpy, and what holds for any values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.spans import from_span, to_span

LEVELS = st.integers(2, 256)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


@given(st.integers(0, 2**32), LEVELS, st.floats(-4, 4), st.floats(-3, 2))
def test_codes_are_those_of_numpy(seed: int, levels: int, centre: float, power: float) -> None:
    values = centre + 10**power * torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))
    found = to_span(values, levels, 1)
    for outer in range(3):
        for inner in range(7):
            group = values[outer, :, inner].numpy()
            scale = np.float32((group.max() - group.min()) / np.float32(levels - 1))
            codes = np.rint((group - group.min()) / scale)
            assert found.scale[outer, 0, inner] == scale and found.minimum[outer, 0, inner] == group.min()
            assert found.codes[outer, :, inner].tolist() == codes.tolist()


@given(st.integers(0, 2**32), LEVELS, DTYPES, st.sampled_from([-1, -2]), st.floats(-6, 6), st.floats(-3, 3))
def test_values_stay_within_half_a_step(seed: int, levels: int, dtype: torch.dtype, dim: int, centre: float, power: float) -> None:
    values = (centre + 10**power * torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(seed))).to(dtype)
    codes, scale, minimum = to_span(values, levels, dim)
    assert codes.dtype == torch.uint8 and int(codes.max()) < levels and scale.dtype == minimum.dtype == dtype
    assert torch.equal(minimum, values.amin(dim, keepdim=True)), "the smallest value is exact"
    points = from_span(codes, scale, minimum)
    exact, step, low = values.double(), scale.double(), minimum.double()
    held = ((exact.amax(dim, keepdim=True) - low) / (levels - 1) - step).abs() * (levels - 1)
    rounding = torch.finfo(dtype).eps * exact.abs().amax(dim, keepdim=True) + 1e-6 * step * levels
    assert bool(((exact - points.double()).abs() <= step / 2 + held + rounding).all())


@given(st.integers(0, 2**32), LEVELS)
def test_points_of_a_grid_are_kept(seed: int, levels: int) -> None:
    """Values that are points already come back as they are: a minimum and a scale that float32 adds up exactly."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, levels, (5, 16), generator=generator)
    codes[:, 0], codes[:, 1] = 0, levels - 1
    values = -3.0 + 0.125 * codes.float()
    found = to_span(values, levels, -1)
    assert torch.equal(found.codes.long(), codes) and torch.equal(from_span(*found), values)


@given(st.floats(-60000, 60000), LEVELS, DTYPES)
def test_equal_values_are_exact(value: float, levels: int, dtype: torch.dtype) -> None:
    values = torch.full((2, 8), value, dtype=dtype)
    assert torch.equal(from_span(*to_span(values, levels, -1)), values)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_and_harms_its_own_group_alone(bad: float) -> None:
    values = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    values[0, 3] = bad
    points = from_span(*to_span(values, 16, -1))
    assert not bool(points[0].isfinite().any()) and bool(points[1].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_codes_are_those_for_the_scale_as_it_is_held(dtype: torch.dtype) -> None:
    """In 8 bits a scale in 16 is off by up to half a step at the far end; codes for an exact scale would read back worse."""
    values = (100 + torch.randn(64, 32, generator=torch.Generator().manual_seed(1))).to(dtype)
    codes, scale, minimum = to_span(values, 256, -1)
    distances = [(minimum.double() + (codes.double() + shift) * scale.double() - values.double()).abs() for shift in (-1, 0, 1)]
    free = (codes > 0) & (codes < 255)
    assert bool(((distances[1] <= distances[0]) & (distances[1] <= distances[2]))[free].all())


def test_the_smallest_scale_that_a_type_cannot_hold() -> None:
    """A range below float16's smallest number reads back as the minimum, not as NaN."""
    values = torch.tensor([[0.0, 2.0**-24]], dtype=torch.float16)
    assert torch.equal(from_span(*to_span(values, 256, -1)), torch.zeros_like(values))
