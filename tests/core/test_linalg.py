"""Factors and quadratic forms against direct computation in float64."""

from __future__ import annotations

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


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 60))
def test_power_iteration_is_below_the_largest_eigenvalue_and_near_it(seed, width, tokens):
    matrix = gram(seed, width, tokens)
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    found = largest_eigenvalue(matrix)
    assert found <= largest * (1 + 1e-9)
    assert found >= 0.97 * largest
    assert largest_eigenvalue(matrix, 2000) >= 0.9995 * largest


def test_power_iteration_in_float32_and_of_easy_matrices():
    matrix = gram(1, 64)
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    assert largest_eigenvalue(matrix.float(), 500) == pytest.approx(largest, rel=1e-3)
    assert largest_eigenvalue(torch.zeros(4, 4)) == 0.0
    assert largest_eigenvalue(torch.eye(4) * 3) == pytest.approx(3.0, rel=1e-6)
    assert largest_eigenvalue(torch.diag(torch.tensor([1.0, 7.0, 0.0]))) == pytest.approx(7.0, rel=1e-5)
