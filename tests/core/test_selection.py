"""Pivoted Cholesky against explicit Gram-Schmidt and scipy's pivoted QR, and refitting against least squares."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.core.selection import absorb, best_readable, pivots


def gram_schmidt(rows: torch.Tensor, kept: int) -> list[int]:
    """The picks as the method's sheet writes them down, one projection after the other."""
    rest, chosen, pool = rows.clone(), [], set(range(len(rows)))
    while len(chosen) < kept:
        for index in chosen:
            pool.discard(index)
        rest = rows.clone()
        while len(chosen) < kept and pool:
            best = max(sorted(pool), key=lambda index: float(rest[index].norm()))
            if float(rest[best].norm()) < 1e-9:
                break
            direction = rest[best] / rest[best].norm()
            rest = rest - (rest @ direction)[:, None] * direction
            chosen.append(best)
            pool.discard(best)
    return chosen


@given(st.integers(0, 10_000), st.integers(1, 24))
def test_picks_are_those_of_gram_schmidt_in_rounds(seed, kept):
    rows = draw(seed, 24, 7)
    assert pivots(rows @ rows.T, kept).tolist() == gram_schmidt(rows, kept)


@given(st.integers(0, 10_000))
def test_the_first_round_is_pivoted_qr(seed):
    rows = draw(seed, 20, 8)
    _, diagonal, order = scipy.linalg.qr(rows.T.numpy(), mode="economic", pivoting=True)
    picks = pivots(rows @ rows.T, 8)
    assert picks.tolist() == order[:8].tolist()
    assert abs(float(torch.logdet(rows[picks] @ rows[picks].T)) - 2 * float(torch.tensor(diagonal.diagonal()).abs().log().sum())) < 1e-6


def test_of_copies_one_each_comes_first():
    rows = draw(3, 6, 10)
    doubled = torch.cat([rows, rows])[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    picks = pivots(doubled @ doubled.T, 12)
    assert torch.linalg.matrix_rank(doubled[picks[:6]]) == 6
    assert sorted(picks.tolist()) == list(range(12))


def test_volume_where_many_vectors_are_nearly_the_same():
    """64 near copies of one row beside 64 random ones: the volume of what is picked, against the longest rows and random ones."""
    rows = torch.cat([3 * draw(4, 1, 32) + 0.05 * draw(5, 64, 32), draw(6, 64, 32)])
    gram = rows @ rows.T

    def volume(picks: torch.Tensor) -> float:
        return float(torch.logdet(gram[picks][:, picks]))

    diverse = volume(pivots(gram, 32))
    assert diverse > volume(torch.randperm(128, generator=torch.Generator().manual_seed(1))[:32]) + 20
    assert diverse > volume(gram.diagonal().argsort(descending=True)[:32]) + 50


def test_vectors_of_no_length_come_last():
    rows = draw(7, 8, 5)
    rows[[0, 3]] = 0
    assert set(pivots(rows @ rows.T, 8).tolist()[-2:]) == {0, 3}
    assert sorted(pivots(torch.zeros(4, 4), 3).tolist()) == [0, 1, 2]


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_every_pick_is_the_one_with_which_the_fit_gains_most(seed, kept):
    """By solving the least-squares problem anew for every candidate."""
    hidden, weight = draw(seed, 40, 9).relu(), draw(seed + 1, 4, 9)
    wanted, picked = hidden @ weight.T, []
    for _ in range(kept):
        left = {}
        for index in set(range(9)) - set(picked):
            design = hidden[:, [*picked, index]]
            left[index] = float((design @ torch.linalg.lstsq(design, wanted).solution - wanted).square().sum())
        picked.append(min(left, key=left.get))
    assert best_readable(weight, hidden.T @ hidden / 40, kept).tolist() == picked


def test_channels_that_tell_nothing_more_follow_by_their_energy():
    hidden = draw(5, 30, 3)
    doubled = torch.cat([hidden, 2 * hidden, torch.zeros(30, 1)], 1)
    picks = best_readable(draw(6, 2, 7), doubled.T @ doubled / 30, 7).tolist()
    assert sorted(picks) == list(range(7)) and {index % 3 for index in picks[:3]} == {0, 1, 2} and picks[-1] == 6


@given(st.integers(0, 10_000), st.integers(1, 11))
def test_absorbing_is_least_squares_with_an_intercept(seed, kept):
    hidden, weight = draw(seed, 80, 12).relu() + 0.3, draw(seed + 1, 5, 12)
    keep = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:kept].sort().values
    found, bias = absorb(weight, hidden.T @ hidden / 80, keep, hidden.mean(0), 0.0)
    design = torch.cat([hidden[:, keep], torch.ones(80, 1)], 1)
    expected = torch.linalg.lstsq(design, hidden @ weight.T).solution
    torch.testing.assert_close(torch.cat([found, bias[:, None]], 1).T, expected, rtol=1e-6, atol=1e-6)
    plain, nothing = absorb(weight, hidden.T @ hidden / 80, keep, None, 0.0)
    torch.testing.assert_close(plain.T, torch.linalg.lstsq(hidden[:, keep], hidden @ weight.T).solution, rtol=1e-6, atol=1e-6)
    assert not bool(nothing.any())


@pytest.mark.parametrize("damp", [0.0, 0.1])
def test_what_the_kept_ones_tell_nothing_about_leaves_the_reader_as_it_is(damp):
    gram, weight = torch.diag(draw(8, 10).square()), draw(9, 4, 10)
    keep = torch.tensor([1, 4, 5])
    torch.testing.assert_close(absorb(weight, gram, keep, None, damp)[0], weight[:, keep])


def test_copies_are_absorbed_without_loss():
    """Duplicated neurons: what picks drop is told by what they keep."""
    hidden = draw(10, 50, 6).relu()
    doubled, weight = torch.cat([hidden, 2 * hidden], 1), draw(11, 3, 12)
    keep = pivots(doubled.T @ doubled, 6).sort().values
    found, _ = absorb(weight, doubled.T @ doubled / 50, keep, None, 1e-12)
    torch.testing.assert_close(doubled[:, keep] @ found.T, doubled @ weight.T, rtol=1e-6, atol=1e-6)
