"""Directions that stay: what is lost without them, the mean that is kept, and what reads make up for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.core.slicing import Slice, best_read, drawn, keeping_mean, normalised, principal, refit, without_mean


def rows_of(seed: int, width: int, tokens: int = 200) -> Tensor:
    """Correlated rows, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, dtype=torch.float64, generator=generator) * torch.logspace(0, -1, width, dtype=torch.float64)
    return torch.randn(tokens, width, dtype=torch.float64, generator=generator) @ mixing.T


def lost(rows: Tensor, matrix: Tensor) -> float:
    return float((rows - rows @ matrix @ matrix.T).square().sum())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), width=st.integers(3, 12), data=st.data())
def test_what_is_lost_is_the_sum_of_the_eigenvalues_that_are_left_out_and_no_other_directions_lose_less(seed, width, data):
    kept = data.draw(st.integers(1, width - 1))
    rows = rows_of(seed, width)
    matrix = principal(rows.T @ rows, kept)
    eigenvalues = torch.linalg.svdvals(rows).square()
    assert lost(rows, matrix) == pytest.approx(float(eigenvalues[kept:].sum()), rel=1e-8)
    assert lost(rows, matrix) <= lost(rows, drawn(width, keeps_mean=False)[:, :kept]) * (1 + 1e-9)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(kept, dtype=torch.float64))
    sliced = Slice(matrix)
    torch.testing.assert_close(sliced.of(sliced.back(sliced.of(rows))), sliced.of(rows))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), width=st.integers(3, 12), data=st.data())
def test_one_channel_can_be_for_the_mean(seed, width, data):
    kept = data.draw(st.integers(2, width))
    rows, basis = rows_of(seed, width), without_mean(width)
    torch.testing.assert_close(basis.T @ basis, torch.eye(width - 1, dtype=torch.float64))
    matrix = keeping_mean(principal(basis.T @ rows.T @ rows @ basis, kept - 1))
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(kept, dtype=torch.float64))
    centred = rows - rows.mean(1, keepdim=True)
    narrow = rows @ matrix
    # taking the mean off afterwards is the same as taking it off before, and a constant stays one
    torch.testing.assert_close(narrow - narrow.mean(1, keepdim=True), centred @ matrix)
    torch.testing.assert_close(torch.ones(1, width, dtype=torch.float64) @ matrix, torch.full((1, kept), (width / kept) ** 0.5).double())
    eigenvalues = torch.linalg.svdvals(centred).square()
    assert lost(centred, matrix) == pytest.approx(float(eigenvalues[kept - 1 :].sum()), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("centred", [False, True])
def test_rows_are_normalised_as_a_norm_does_it(centred):
    rows = rows_of(0, 6).float()
    norm = torch.nn.LayerNorm(6, eps=0) if centred else torch.nn.RMSNorm(6, eps=0)
    torch.testing.assert_close(normalised(rows, centred=centred), norm(rows).detach(), rtol=1e-4, atol=1e-5)


def test_the_refit_is_that_of_least_squares():
    rows = rows_of(1, 8)
    gram, matrix = rows.T @ rows / len(rows), drawn(8, keeps_mean=False)[:, :5]
    expected = torch.linalg.lstsq(rows @ matrix, rows).solution.T
    torch.testing.assert_close(refit(gram, matrix, 0.0), expected)
    torch.testing.assert_close(refit(gram, matrix, 1e9), matrix, rtol=1e-6, atol=1e-6)
    best = principal(gram, 5)
    torch.testing.assert_close(refit(gram, best, 0.0), best)  # nothing that is left tells of what is gone
    whole = drawn(8, keeps_mean=False)
    torch.testing.assert_close(refit(gram, whole, 1e-3), whole)


def unexplained(matrix: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> float:
    total = 0.0
    for gram, read in pairs:
        back = refit(gram, matrix, 0.0)
        apart = torch.eye(len(gram), dtype=torch.float64) - back @ matrix.T
        total += float((read @ apart @ gram @ apart.T).trace())
    return total


def test_one_reader_that_reads_all_alike_finds_the_principal_directions():
    rows = rows_of(2, 7)
    pairs = [(rows.T @ rows / len(rows), torch.eye(7, dtype=torch.float64))]
    found = best_read(drawn(7, keeps_mean=False)[:, :4], lambda: pairs, 300)
    eigenvalues = torch.linalg.eigvalsh(pairs[0][0])
    assert unexplained(found, pairs) == pytest.approx(float(eigenvalues[:3].sum()), rel=1e-2)


def test_a_reader_of_few_outputs_loses_nothing():
    """Three outputs need three directions, whatever the energy is."""
    rows = rows_of(3, 9)
    weight = rows_of(4, 9, tokens=3)
    pairs = [(rows.T @ rows / len(rows), weight.T @ weight)]
    start = principal(pairs[0][0], 4)
    found = best_read(start, lambda: pairs, 300)
    assert unexplained(found, pairs) < 0.01 * unexplained(start, pairs)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 6))
def test_no_step_makes_it_worse(seed, steps):
    pairs = [(rows.T @ rows, weight.T @ weight) for rows, weight in ((rows_of(seed + i, 6), rows_of(seed + 9 + i, 6, 4)) for i in range(3))]
    start = principal(sum(gram for gram, _ in pairs), 3)
    found = best_read(start, lambda: pairs, steps)
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64))
    assert unexplained(found, pairs) <= unexplained(start, pairs) * (1 + 1e-6)
