"""Factors and quadratic forms against direct computation in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.linalg import largest_eigenvalue, row_forms, times_upper, upper_factor


def gram(seed: int, width: int, tokens: int | None = None, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    inputs = torch.randn(tokens or 4 * width, width, generator=generator, dtype=torch.float64) @ mix
    return (inputs.T @ inputs / inputs.shape[0]).to(dtype)


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_upper_factor_times_its_transpose_is_the_matrix(seed, width):
    matrix = gram(seed, width) + 0.01 * torch.eye(width, dtype=torch.float64)
    factor = upper_factor(matrix)
    assert torch.equal(factor, factor.triu())
    assert bool((factor.diagonal() > 0).all())
    torch.testing.assert_close(factor @ factor.T, matrix, rtol=1e-9, atol=1e-9)


def test_the_inverse_of_the_upper_factor_is_the_upper_cholesky_factor_of_the_inverse():
    matrix = gram(3, 20) + 0.1 * torch.eye(20, dtype=torch.float64)
    published = torch.linalg.cholesky(torch.linalg.inv(matrix), upper=True)
    torch.testing.assert_close(torch.linalg.inv(upper_factor(matrix)), published, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("worst", [-1e-3, -5.0, float("nan")])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(worst):
    matrix = torch.diag(torch.tensor([1.0, 2.0, worst, 3.0]))
    assert upper_factor(matrix) is None


@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 64, 100])
def test_times_upper_equals_the_whole_product(width):
    generator = torch.Generator().manual_seed(width)
    left = torch.randn(5, width, generator=generator, dtype=torch.float64)
    factor = torch.randn(width, width, generator=generator, dtype=torch.float64).triu()
    torch.testing.assert_close(times_upper(left, factor), left @ factor, rtol=1e-12, atol=1e-12)


def test_row_forms_are_the_diagonal_of_the_whole_form():
    matrix = gram(5, 16)
    rows = torch.randn(9, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(row_forms(rows, matrix), (rows @ matrix @ rows.T).diagonal(), rtol=1e-12, atol=1e-12)


# -- the largest eigenvalue ------------------------------------------------------------------------------------------------

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}


def of_spectrum(seed: int, spectrum: torch.Tensor) -> torch.Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    width = spectrum.numel()
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors = torch.linalg.qr(mix).Q
    matrix = vectors * spectrum.double() @ vectors.T
    return (matrix + matrix.T) / 2


def check_bound(matrix: torch.Tensor, slack: float = 0.0051) -> None:
    largest = float(torch.linalg.eigvalsh(matrix.double())[-1])
    for dtype, rounding in ROUNDING.items():
        found = float(largest_eigenvalue(matrix.to(dtype)))
        assert largest * (1 - rounding) <= found <= largest * (1 + slack + rounding), dtype


SPECTRA = {
    "one value": lambda n: torch.ones(n),
    "one direction": lambda n: torch.cat([torch.ones(1), torch.zeros(n - 1)]),
    "one above a cluster": lambda n: torch.cat([torch.ones(1), torch.full((n - 1,), 0.98)]),
    "one barely above a cluster": lambda n: torch.cat([torch.ones(1), torch.full((n - 1,), 0.9999)]),
    "a cluster above the rest": lambda n: torch.cat([torch.linspace(0.99, 1, n // 2), torch.zeros(n - n // 2)]),
    "even": lambda n: torch.linspace(0, 1, n + 1)[1:],
    "crowded below the top": lambda n: torch.linspace(0, 1, n + 1)[1:] ** 0.1,
    "crowded at both ends": lambda n: 1 + torch.cos(torch.arange(n) * torch.pi / n),
    "geometric": lambda n: 0.97 ** torch.arange(n),
    "harmonic": lambda n: 1 / (1 + torch.arange(n)),
    "far apart": lambda n: torch.logspace(6, -12, n, dtype=torch.float64),
}


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("width", [2, 31, 33, 200, 500])
def test_the_bound_is_above_the_largest_eigenvalue_and_near_it_whatever_the_spectrum(spectrum, width):
    check_bound(of_spectrum(width, spectrum(width)))


@given(
    st.integers(0, 10_000),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.03), st.integers(1, 40)), min_size=1, max_size=5),
    st.floats(-8, 8),
)
def test_the_bound_holds_for_any_clusters(seed, clusters, exponent):
    """Clusters of eigenvalues: where they begin, how far they reach downwards, how many they are."""
    parts = [(top * (1 - spread * torch.linspace(0, 1, count))) for top, spread, count in clusters]
    check_bound(of_spectrum(seed, torch.cat(parts) * 10.0**exponent))


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 60))
def test_the_bound_holds_for_gram_matrices_of_few_and_many_tokens(seed, width, tokens):
    check_bound(gram(seed, width, tokens))


@given(st.integers(0, 10_000), st.floats(1, 30))
def test_the_bound_holds_where_the_search_is_blind(seed, gain):
    """The largest eigenvalue belongs to a direction that the first vector of the search does not have."""
    width = 60
    start = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hidden -= start * (hidden @ start) / (start @ start)
    matrix = torch.eye(width, dtype=torch.float64) + gain * torch.outer(hidden, hidden) / (hidden @ hidden)
    found = float(largest_eigenvalue(matrix))
    assert (1 + gain) * (1 - 1e-12) <= found <= 2 * (1 + gain)


def test_many_matrices_at_once_get_what_each_would_get_alone():
    matrices = torch.stack([torch.stack([gram(seed, 20) * 10.0**seed, gram(seed + 9, 20, 3)]) for seed in range(3)])
    found = largest_eigenvalue(matrices)
    assert found.shape == (3, 2)
    alone = torch.stack([torch.stack([largest_eigenvalue(matrix) for matrix in pair]) for pair in matrices])
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=0)


def test_the_bound_of_easy_and_of_extreme_matrices():
    assert float(largest_eigenvalue(torch.zeros(4, 4))) == 0.0
    assert float(largest_eigenvalue(torch.full((1, 1), 3.0))) == pytest.approx(3.0, rel=0.0051)
    for size in (1e-30, 1e30):
        assert size <= float(largest_eigenvalue(torch.eye(4) * size)) <= 1.0051 * size
    for value in (float("nan"), float("inf")):
        matrix = torch.eye(5)
        matrix[0, 3] = matrix[3, 0] = value
        assert not math.isfinite(float(largest_eigenvalue(matrix)))
        assert not math.isfinite(float(largest_eigenvalue(value * torch.eye(3))))
