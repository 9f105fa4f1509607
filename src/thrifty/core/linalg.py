"""Factors and quadratic forms of Gram matrices."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

PANELS = 8

FACTORED = 256
"""Columns that are factorized at a time. The library clears the other triangle of its result against the order in which it lies in memory,
which for a large matrix takes as long as the factor itself."""

STEPS = 32
"""Products with a matrix that its largest eigenvalue is looked for with."""

EXCESS = 0.005
"""How far above what was found the largest eigenvalue is bounded at first; doubled as long as it may lie higher."""

RAISES = 8
"""How often a bound is raised."""


def upper_factor(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"] | None:
    """The upper triangular R with matrix = R R^T, or None when the matrix is not positive definite to working precision.

    Column j of R couples input j with the inputs before it, so the squared norm of d R is a sum over columns, each of which depends on the
    entries of d up to its own: what a solver that walks through the columns in order needs. R^-1 is the factor U of
    matrix^-1 = U^T U that the literature on GPTQ uses; no inverse is formed.
    """
    width = matrix.shape[0]
    factor = torch.zeros_like(matrix)
    for stop in range(width, 0, -FACTORED):
        start = max(0, stop - FACTORED)
        rest = torch.addmm(matrix[:stop, start:stop], factor[:stop, stop:], factor[start:stop, stop:].T, alpha=-1)
        lower, info = torch.linalg.cholesky_ex(rest[start:].flip(0, 1))
        if int(info) != 0 or not bool(torch.isfinite(lower.diagonal()).all()):
            return None
        corner = factor[start:stop, start:stop].copy_(lower.flip(0, 1))
        factor[:start, start:stop] = torch.linalg.solve_triangular(corner.T, rest[:start], upper=False, left=False)
    return factor


def times_upper(left: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"]) -> Float[Tensor, "rows n"]:
    """left @ factor for an upper triangular factor, leaving out most of the products with its zeros."""
    out = torch.empty_like(left)
    for start, stop in _panels(factor.shape[0]):
        torch.matmul(left[:, :stop], factor[:stop, start:stop], out=out[:, start:stop])
    return out


def row_forms(rows: Float[Tensor, "rows n"], matrix: Float[Tensor, "n n"]) -> Float[Tensor, "rows"]:
    """x matrix x^T of each row x, for a symmetric matrix: what lies below its diagonal is counted twice instead of computed."""
    total = torch.zeros_like(rows[:, 0])
    for start, stop in _panels(matrix.shape[0]):
        part = rows[:, start:stop]
        product = part @ matrix[start:stop, start:stop]
        product.addmm_(rows[:, :start], matrix[:start, start:stop], alpha=2)
        total += torch.linalg.vecdot(product, part)
    return total


def _panels(width: int) -> Iterator[tuple[int, int]]:
    """Where each of a few runs of columns starts and stops."""
    return pairwise(round(width * part / PANELS) for part in range(PANELS + 1))


HARDLY_SEEN = 1e-3
"""Inputs with less than this share of the mean energy count, where a step is divided by it, as if they had as much."""


def seen_diagonal(gram: Float[Tensor, "in in"]) -> Float[Tensor, "in"]:
    """diag(gram), with what was hardly seen as large as `HARDLY_SEEN` says; what was never seen stays 0."""
    diagonal = gram.diagonal()
    return torch.where(diagonal > 0, diagonal.clamp_min(HARDLY_SEEN * float(diagonal.mean())), 0.0)


def largest_eigenvalue(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """An upper bound on the largest eigenvalue of symmetric positive semidefinite matrices; NaN or infinite where an entry is.

    A Ritz value comes from below. A Cholesky factor of  bound * I - matrix  then proves, to working precision, that nothing lies above the
    bound; where there is none the bound is raised, at last to the Frobenius norm, which needs no proof. So it lies 0.5 % above the
    eigenvalue, or as far above as the Ritz value lies below.
    """
    # No entry of such a matrix is larger than the largest of its diagonal: measured in it, squares neither overflow nor vanish.
    unit = matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
    scaled = matrix / torch.where(unit > 0, unit, torch.ones_like(unit))[..., None, None]
    below = _ritz_value(scaled)
    excess, bound = EXCESS, below * (1 + EXCESS)
    for _ in range(RAISES):
        shifted = -scaled
        shifted.diagonal(dim1=-2, dim2=-1).add_(bound[..., None])
        unproven = torch.linalg.cholesky_ex(shifted).info != 0
        if not bool(unproven.any()):
            return bound * unit
        excess *= 2
        bound = torch.where(unproven, below * (1 + excess), bound)
    return torch.where(unproven, torch.linalg.matrix_norm(scaled), bound) * unit


def _ritz_value(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """The largest Ritz value of the Krylov space of a random vector, orthogonalized against all before it; never above the eigenvalue."""
    width = matrix.shape[-1]
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(width, generator=generator, dtype=torch.float64).to(matrix)
    vector = (vector / torch.linalg.vector_norm(vector)).expand(matrix.shape[:-1])
    basis = matrix.new_zeros(*matrix.shape[:-2], min(STEPS, width), width)
    images = torch.zeros_like(basis)
    for step in range(basis.shape[-2]):
        basis[..., step, :] = vector
        image = (matrix @ vector[..., None])[..., 0]
        images[..., step, :] = image
        rest = image
        for _ in range(2):
            rest = rest - (rest[..., None, :] @ basis.mT @ basis)[..., 0, :]
            length = torch.linalg.vector_norm(rest, dim=-1, keepdim=True)
            rest = torch.where(length > 0, rest / length, rest)
        # What loses half of itself the second time is rounding error: the space is complete, and it would repeat a direction.
        vector = torch.where(length > 0.5, rest, torch.zeros_like(rest))
    projected = (basis @ images.mT).to(torch.float64).nan_to_num()
    return torch.linalg.eigvalsh((projected + projected.mT) / 2)[..., -1].to(matrix.dtype)
