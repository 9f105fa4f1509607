"""Inputs as bytes: how far codes are off, and the compiled loops against their twins in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.core import fast_bytes
from thrifty.core.activations import Rounding
from thrifty.core.token_bytes import PIECES, TokenBytes, free_bytes, grid_bytes

SHAPES = st.tuples(st.integers(1, 5), st.sampled_from([1, 3, 15, 16, 17, 64, 100, 257]))
TYPES = st.sampled_from([torch.float32, torch.bfloat16])
compiled = pytest.mark.skipif(fast_bytes._calls() is None, reason="this machine cannot compile it")


def inputs(seed: int, shape: tuple[int, int], dtype: torch.dtype, size: float, outliers: bool) -> Tensor:
    """Normal inputs around another mean for each token; where there are outliers, every second token has one."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=draw) + torch.randn(shape[0], 1, generator=draw)
    if outliers:
        rows[::2, -1] = 80.0
    return (rows * size).to(dtype)


def by_passes(call: Callable[[], TokenBytes | Tensor]) -> TokenBytes | Tensor:
    """The same call by plain torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_bytes, "_calls", lambda: None)
        return call()


@given(st.integers(0, 10_000), SHAPES, TYPES, st.sampled_from([1e-6, 1.0, 1e4]), st.booleans())
def test_an_input_is_off_by_half_a_step_at_most(seed: int, shape: tuple[int, int], dtype: torch.dtype, size: float, outliers: bool) -> None:
    rows = inputs(seed, shape, dtype, size, outliers)
    for read in (free_bytes(rows), by_passes(lambda: free_bytes(rows))):
        few = 0 if read.coarse is None else len(read.coarse)
        assert isinstance(read, TokenBytes) and len(read.codes) == max(2, len(rows) + few)
        codes, step, low = read.codes[: len(rows)].double(), read.step.double(), read.low.double()
        error = (rows.double() - (codes * step + low)).abs()
        assert bool((error <= 0.5001 * step).all())
        if read.coarse is not None:
            codes[read.coarse] += (read.codes[len(rows) : len(rows) + few].double() - PIECES / 2) / PIECES
            error = (rows.double() - (codes * step + low)).abs()[read.coarse]
            rounding = 256 * 2.0**-23 * step[read.coarse]  # the code before it is rounded has 24 bits
            assert bool((error <= 0.5001 * step[read.coarse] / PIECES + rounding).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_with_outliers_are_coarse_and_normal_ones_are_not(dtype: torch.dtype) -> None:
    rows = inputs(0, (9, 512), dtype, 1.0, True)
    for read in (free_bytes(rows), by_passes(lambda: free_bytes(rows))):
        assert isinstance(read, TokenBytes) and read.coarse is not None
        assert read.coarse.tolist() == [0, 2, 4, 6, 8]
    assert free_bytes(inputs(0, (9, 512), dtype, 1.0, False)).coarse is None


@compiled
@given(st.integers(0, 10_000), SHAPES, TYPES, st.sampled_from([1e-12, 1.0, 1e30]), st.booleans())
def test_compiled_and_plain_agree(seed: int, shape: tuple[int, int], dtype: torch.dtype, size: float, outliers: bool) -> None:
    rows = inputs(seed, shape, dtype, size, outliers)
    found, expected = free_bytes(rows), by_passes(lambda: free_bytes(rows))
    assert isinstance(expected, TokenBytes)
    assert torch.equal(found.codes[: len(rows)], expected.codes[: len(rows)])
    assert torch.equal(found.low, expected.low) and torch.equal(found.step, expected.step)
    assert (found.coarse is None) == (expected.coarse is None)
    if found.coarse is not None and expected.coarse is not None:
        assert torch.equal(found.coarse, expected.coarse)
        few = slice(len(rows), len(rows) + len(found.coarse))
        # a product and a sum may be one instruction, which rounds once
        assert int((found.codes[few].int() - expected.codes[few].int()).abs().max()) <= 1


@compiled
@given(st.integers(0, 10_000), SHAPES, TYPES, st.booleans(), st.sampled_from(["token", "tensor"]))
def test_codes_on_known_grids_are_those_of_plain_torch(
    seed: int, shape: tuple[int, int], dtype: torch.dtype, symmetric: bool, per: str
) -> None:
    rows = inputs(seed, shape, dtype, 1.0, True)
    step, zero_point = Rounding(8, per, symmetric).grid(rows.float())  # type: ignore[arg-type]
    step, zero_point = step.reshape(-1, 1) / 2, zero_point.reshape(-1, 1)  # half as wide, so that some are cut off
    found, expected = grid_bytes(rows, step, zero_point), by_passes(lambda: grid_bytes(rows, step, zero_point))
    assert isinstance(expected, Tensor) and torch.equal(found[: len(rows)], expected[: len(rows)])
    assert len(found) == len(expected) == max(2, len(rows))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 15, 16, 39])
def test_a_token_with_what_is_no_number_is_none_and_leaves_the_others_alone(bad: float, place: int) -> None:
    rows = inputs(1, (3, 40), torch.float32, 1.0, False)
    rows[1, place] = bad
    for read in (free_bytes(rows), by_passes(lambda: free_bytes(rows))):
        assert isinstance(read, TokenBytes)
        values = read.codes[:3].float() * read.step + read.low
        assert bool(values[1].isnan().any() | values[1].isinf().any())
        assert bool((values[::2] - rows[::2]).abs().max() < 0.02)


def test_what_c_does_not_take_is_done_by_torch() -> None:
    """Other types, rows that do not follow each other, and many of them."""
    assert fast_bytes.free_rows(torch.zeros(fast_bytes.MOST // 64 + 1, 64), 1.0, 1e-8, PIECES) is None
    rows = inputs(2, (4, 64), torch.float32, 1.0, False)
    expected = free_bytes(rows)
    for other in (rows.double(), rows.T.contiguous().T, torch.cat([rows, rows], 1)[:, :64]):
        assert fast_bytes.free_rows(other, 1.0, 1e-8, PIECES) is None
        found = free_bytes(other)
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.step, expected.step)
