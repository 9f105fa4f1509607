"""Spectra: known exponents, the bias that shapes bring, and what scaling, turning and transposing must not change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.core.spectra import (
    CANDIDATES,
    SMALLEST,
    effective_rank,
    eigenvalues,
    farms,
    farms_kernel,
    hill,
    slices,
    stable_rank,
    windows,
)

SHAPES = ((256, 256), (256, 512), (256, 1024), (512, 256), (1024, 256))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_eigenvalues_are_the_squared_singular_values(shape):
    matrix = draw(0, *shape)
    torch.testing.assert_close(eigenvalues(matrix), torch.linalg.svdvals(matrix).square().flip(0))
    both = torch.stack([matrix, 2 * matrix])
    torch.testing.assert_close(eigenvalues(both), torch.stack([eigenvalues(matrix), 4 * eigenvalues(matrix)]))


def test_hill_by_hand():
    values = torch.tensor([3.0, 1.0, 2.0, 8.0, 4.0, 16.0])
    # sorted 1 2 3 | 4 8 16: three values, their logarithms over 4 are 0, ln 2, ln 4
    assert hill(values) == pytest.approx(1 + 3 / (3 * math.log(2)))


def plain(values: list[float], near: bool) -> float:
    """The rules by loops: of all starts, those near the peak where that is asked for, the one with the least distance."""
    values = sorted(value for value in values if value > SMALLEST * max(values))
    logs = [math.log10(value) for value in values]
    width = (logs[-1] - logs[0]) / 100
    counts = [0] * 100
    for log in logs:
        counts[min(99, int((log - logs[0]) / width))] += 1
    peak = 10 ** (logs[0] + (counts.index(max(counts)) + 0.5) * width)
    best = (math.inf, math.nan)
    for start in range(len(values) - 1):
        if near and not 0.95 * peak < values[start] < 1.5 * peak:
            continue
        tail = [value / values[start] for value in values[start:]]
        alpha = 1 + len(tail) / sum(math.log(ratio) for ratio in tail)
        distance = max(abs(1 - ratio ** (1 - alpha) - rank / len(tail)) for rank, ratio in enumerate(tail))
        best = min(best, (distance, alpha))
    return best[1]


@pytest.mark.parametrize(("rule", "near"), [("peak", True), ("goodness", False)])
def test_tails_start_where_the_power_law_fits_best(rule, near):
    for seed in range(3):
        values = eigenvalues(draw(seed, 60, 150))
        assert hill(values, rule) == pytest.approx(plain(values.tolist(), near), rel=1e-9)


@pytest.mark.parametrize("rule", ["median", "goodness"])
@pytest.mark.parametrize("alpha", [1.5, 2.5, 4.0])
def test_the_exponent_of_a_power_law_is_found(alpha, rule):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp_min(1e-3)
    values = 3 * uniform ** (-1 / (alpha - 1))
    assert len(values) > CANDIDATES
    kept = 10_000 if rule == "median" else 2_000
    assert hill(values.clamp_max(values.max()), rule) == pytest.approx(alpha, abs=4 * (alpha - 1) / kept**0.5 + 0.02)


def test_windows_take_away_what_shapes_add():
    found = [draw(seed, *shape) for seed, shape in enumerate(SHAPES)]
    whole = [hill(eigenvalues(matrix)) for matrix in found]
    even = [farms(matrix, 128, 1.0, 3, "median") for matrix in found]
    assert whole == pytest.approx([2.14, 2.73, 3.44, 2.74, 3.47], abs=0.06)
    assert even == pytest.approx([2.115, 2.115, 2.114, 2.122, 2.123], abs=0.03)
    assert max(whole) - min(whole) > 20 * (max(even) - min(even))


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(2, 12), st.sampled_from(["median", "peak", "goodness"]), st.floats(1e-3, 1e3))
def test_neither_size_nor_turning_matters(seed, out, width, rule, factor):
    matrix = draw(seed, out, width)
    whole = hill(eigenvalues(matrix), rule)
    turned = torch.linalg.qr(draw(seed + 1, out, out)).Q @ matrix
    for other in (matrix.T, turned, -matrix):
        assert hill(eigenvalues(other), rule) == pytest.approx(whole, rel=1e-5)
    assert hill(eigenvalues(factor * matrix), "median") == pytest.approx(hill(eigenvalues(matrix)), rel=1e-6)


def test_windows_cover_what_they_should():
    assert windows(6, 6, 100, 1.0, 15) == ((6, 6), [(0, 0)])
    shape, starts = windows(4, 12, 100, 1.0, 3)
    assert shape == (4, 4) and starts == [(0, 0), (0, 4), (0, 8)]
    assert windows(10, 10, 4, 1.0, 1) == ((4, 4), [(0, 0)])
    shape, starts = windows(8, 8, 8, 2.0, 2)
    assert shape == (4, 8) and starts == [(0, 0), (4, 0)]
    for out, width, side, ratio, positions in ((7, 30, 5, 1.0, 4), (30, 7, 9, 0.5, 3), (3, 3, 2, 1.0, 5)):
        (rows, columns), starts = windows(out, width, side, ratio, positions)
        assert all(row + rows <= out and column + columns <= width for row, column in starts)
        assert len(set(starts)) == len(starts) <= positions**2


def test_one_window_is_the_whole_matrix_and_transposing_changes_nothing():
    square = draw(3, 40, 40)
    assert farms(square, 100, rule="median") == hill(eigenvalues(square))
    long = draw(4, 20, 70)
    assert farms(long, 10, 1.0, 4, "median") == pytest.approx(farms(long.T, 10, 1.0, 4, "median"), rel=1e-9)


@pytest.mark.parametrize("shape", [(12, 5, 3, 3), (5, 12, 3, 3), (7, 7, 2, 1), (11, 4, 5)])
def test_the_places_of_a_kernel_are_counted_together_block_by_block(shape):
    """By loops: squares along the longer side of every place, what is left over left out."""
    kernel = draw(7, *shape)
    short = min(shape[:2])
    blocks = []
    for number in range(max(shape[:2]) // short):
        part = slice(number * short, (number + 1) * short)
        found = [place[part] if shape[0] > shape[1] else place[:, part] for place in kernel.flatten(2).unbind(2)]
        blocks.append(hill(torch.cat([torch.linalg.svdvals(place).square() for place in found])))
    assert farms_kernel(kernel) == pytest.approx(sum(blocks) / len(blocks), rel=1e-9)
    assert farms_kernel(0.5**0.5 * kernel) == pytest.approx(farms_kernel(kernel), rel=1e-9)
    assert farms_kernel(kernel.transpose(0, 1)) == pytest.approx(farms_kernel(kernel), rel=1e-9)


def test_a_kernel_of_one_place_is_its_matrix():
    square, long = draw(8, 20, 20), draw(9, 20, 90)
    assert farms_kernel(square[..., None, None]) == pytest.approx(hill(eigenvalues(square)), rel=1e-9)
    assert torch.equal(slices(long)[0], long) and torch.equal(slices(long[..., None, None])[0], long)
    # random ones: the longer, the larger alpha, but not where it is cut
    plain = hill(eigenvalues(long)) / hill(eigenvalues(square))
    assert plain > 1.5 and farms_kernel(long[..., None]) / farms_kernel(square[..., None]) < 1.2


def test_odd_matrices():
    assert math.isnan(hill(eigenvalues(torch.zeros(4, 4)))) and math.isnan(hill(torch.ones(0)))
    assert hill(torch.ones(9)) == math.inf == hill(torch.ones(9), "peak") == hill(torch.ones(9), "goodness")
    low = draw(5, 30, 4) @ draw(6, 4, 30)
    assert hill(eigenvalues(low)) == pytest.approx(hill(eigenvalues(low)[-4:]))


def test_ranks():
    values = torch.tensor([9.0, 4.0, 1.0, 0.0])
    shares = [3 / 6, 2 / 6, 1 / 6]
    assert stable_rank(values) == pytest.approx(14 / 9)
    assert effective_rank(values) == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
    assert effective_rank(torch.ones(7)) == pytest.approx(7) == stable_rank(torch.ones(7))
    assert effective_rank(torch.zeros(3)) == 0 == stable_rank(torch.zeros(3))
