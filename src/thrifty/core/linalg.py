"""Factors and quadratic forms of Gram matrices."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

PANELS = 8


def upper_factor(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"] | None:
    """The upper triangular R with matrix = R R^T, or None when the matrix is not positive definite to working precision.

    Column j of R couples input j with the inputs before it, so the squared norm of d R is a sum over columns, each of which depends on the
    entries of d up to its own: what a solver that walks through the columns in order needs. R^-1 is the factor U of
    matrix^-1 = U^T U that the literature on GPTQ uses; no inverse is formed.
    """
    lower, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(info) != 0 or not bool(torch.isfinite(lower.diagonal()).all()):
        return None
    return lower.flip(0, 1)


def times_upper(left: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"]) -> Float[Tensor, "rows n"]:
    """left @ factor for an upper triangular factor, leaving out most of the products with its zeros."""
    width = factor.shape[0]
    out = torch.empty_like(left)
    edges = [round(width * part / PANELS) for part in range(PANELS + 1)]
    for start, stop in pairwise(edges):
        torch.matmul(left[:, :stop], factor[:stop, start:stop], out=out[:, start:stop])
    return out


def row_forms(rows: Float[Tensor, "rows n"], matrix: Float[Tensor, "n n"]) -> Float[Tensor, "rows"]:
    """x matrix x^T of each row x."""
    return torch.einsum("ij,ij->i", rows @ matrix, rows)


def largest_eigenvalue(matrix: Float[Tensor, "n n"], steps: int = 50) -> float:
    """The largest eigenvalue of a symmetric positive semidefinite matrix, by power iteration; never above the true value."""
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(matrix.shape[0], generator=generator, dtype=torch.float64) + 0.5
    vector = start.to(matrix)
    value = 0.0
    for _ in range(steps):
        image = matrix @ vector
        norm = float(torch.linalg.vector_norm(image))
        if norm == 0.0:
            return 0.0
        value = norm / float(torch.linalg.vector_norm(vector))
        vector = image / norm
    return value
