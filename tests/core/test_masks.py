"""Masks: exact counts, no dropped entry above a kept one, ties by position, and against sorting in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.masks import apply_mask, keep_n_of_m, keep_per_block, keep_per_row


def gains(seed: int, rows: int, width: int, values: int) -> torch.Tensor:
    """Few different values, so that ties are common."""
    return torch.randint(0, values, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def first_largest(row: list[float], kept: int) -> list[bool]:
    order = sorted(range(len(row)), key=lambda index: (-row[index], index))
    return [index in order[:kept] for index in range(len(row))]


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 12), st.integers(0, 14), st.sampled_from([2, 5, 1000]))
def test_rows_keep_the_largest_and_the_first_of_equals(seed, rows, width, kept, values):
    gain = gains(seed, rows, width, values)
    found = keep_per_row(gain, kept)
    assert found.dtype == torch.bool
    assert found.tolist() == [first_largest(row, kept) for row in gain.tolist()]
    assert found.sum(1).tolist() == [min(kept, width)] * rows


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5), st.sampled_from([(1, 2), (2, 4), (4, 8), (3, 5), (4, 4)]))
def test_n_of_every_m_are_kept(seed, rows, groups, pattern):
    n, m = pattern
    gain = gains(seed, rows, groups * m, 6)
    found = keep_n_of_m(gain, n, m).reshape(rows, groups, m)
    assert bool((found.sum(-1) == n).all())
    for row, kept in zip(gain.reshape(-1, m).tolist(), found.reshape(-1, m).tolist(), strict=True):
        assert kept == first_largest(row, n)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 30), st.floats(0, 0.99), st.integers(1, 12))
def test_blocks_drop_their_share_of_the_smallest(seed, rows, width, sparsity, block):
    gain = gains(seed, rows, width, 9)
    found = keep_per_block(gain, sparsity, block)
    dropped = 0
    for start in range(0, width, block):
        run, kept = gain[:, start : start + block], found[:, start : start + block]
        count = int(kept.sum())
        assert kept.flatten().tolist() == first_largest(run.flatten().tolist(), count)
        assert abs(run.numel() - count - sparsity * run.numel()) <= 1
        dropped += run.numel() - count
        assert abs(dropped - sparsity * rows * (start + run.shape[1])) <= 0.5
        assert torch.equal(keep_per_block(run, sparsity, block, start=start), kept)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9])
def test_one_block_over_the_whole_matrix_lets_rows_compete(sparsity):
    gain = torch.rand(10, 40, generator=torch.Generator().manual_seed(1))
    gain[0] += 10
    found = keep_per_block(gain, sparsity, 40)
    assert int((~found).sum()) == round(400 * sparsity)
    assert bool(found[0].all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_dropped_is_positive_zero_and_what_stays_keeps_its_bytes(dtype):
    values = torch.tensor([[-1.0, 2.0, -0.0], [-3.0, -0.0, 0.0]], dtype=dtype)
    mask = torch.tensor([[False, True, True], [True, False, False]])
    found = apply_mask(values, mask)
    assert found.tolist() == [[0.0, 2.0, 0.0], [-3.0, 0.0, 0.0]]
    assert torch.signbit(found).tolist() == [[False, False, True], [True, False, False]]
    assert torch.signbit(values).tolist() == [[True, False, True], [True, True, False]]
