"""Matrices of low rank that change an output least, in closed form.

    truncate       min ||R (W - B A) X||_F over B [out, rank], A [rank, in]        (SVD-LLM, R = I; GFWSVD, R^T R Fisher's of the outputs)
    shared_basis   min ||L (I - M) Z^1/2||_F over M of rank k                      (products of two matrices: V and O, Q and K of a head)
    reduced_rank   min ||R - B A X||_F^2 + ridge ||B A||_F^2                       (a patch for what a cut left over)
    weighted_patch the truncated SVD of the ridge fit, its rows weighed            (the patch as Olica publishes it)

All of them need inputs only through Gram matrices. The best B A of rank k is a projection of the full-rank answer onto k directions of the
output, so no Gram matrix is inverted to truncate, and one that is singular, since few inputs were seen, does no harm. Everything is
computed in float64 and returned in the type of the first argument.
Sources: Wang, Zheng, Wan and Zhang (2024), arXiv 2403.07378; Chekalina and others (2025), arXiv 2505.17974; He and Lin (2025), arXiv
2506.08436; Izenman (1975), reduced-rank regression.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Factors = tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]
"""(B, A): y = B (A x)."""


def rank_for(out_features: int, in_features: int, share: float) -> int:
    """The largest rank at which two factors hold no more than `share` of the weights of a matrix; at least 1, at most the full rank."""
    rank = int(share * out_features * in_features / (out_features + in_features))
    return min(max(1, rank), out_features, in_features)


def truncate(
    weight: Float[Tensor, "out in"],
    rank: int,
    gram: Float[Tensor, "in in"] | None = None,
    weigher: Float[Tensor, "out out"] | None = None,
) -> Factors:
    """The factors of rank `rank` that change outputs least: tr(R (W - B A) gram (W - B A)^T R^T).

    gram: None where all inputs count the same. weigher: an invertible R; None where all outputs count the same. With S S^T = gram and the
    SVD  R W S = U s Q^T,  SVD-LLM's (U_k s_k)(Q_k^T S^-1) is U_k U_k^T R W, and B A is R^-1 times that; the loss is the sum of the s^2 that
    were dropped. The columns of B are orthonormal, those that put out most first, whatever R is: with R^-1 U_k for B, what rounding adds to
    large entries, which count little together, would count by itself.
    """
    wide, seen = weight.to(torch.float64), None if gram is None else gram.to(torch.float64)
    if weigher is None:
        basis = _basis(wide, rank, seen)
        return basis.to(weight.dtype), (basis.T @ wide).to(weight.dtype)
    root = weigher.to(torch.float64)
    basis = _basis(root @ wide, rank, seen)
    up, corner = torch.linalg.qr(torch.linalg.solve(root, basis))
    down = corner @ (basis.T @ root @ wide)
    turn = _basis(down, rank, seen)
    return (up @ turn).to(weight.dtype), (turn.T @ down).to(weight.dtype)


def _basis(wide: Float[Tensor, "out in"], rank: int, gram: Float[Tensor, "in in"] | None) -> Float[Tensor, "out rank"]:
    """The left singular vectors of W gram^1/2, the largest singular values first; where that is wide, as eigenvectors of its square."""
    if wide.shape[0] <= wide.shape[1]:
        return torch.linalg.eigh(_square(wide, gram)).eigenvectors.flip(1)[:, :rank]
    return torch.linalg.svd(_seen(wide, gram), full_matrices=False).U[:, :rank]


def truncation_losses(
    weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"] | None = None, weigher: Float[Tensor, "out out"] | None = None
) -> Float[Tensor, "ranks"]:
    """What `truncate` loses at each rank, from 0 to the full one, float64."""
    wide, seen = weight.to(torch.float64), None if gram is None else gram.to(torch.float64)
    wide = wide if weigher is None else weigher.to(torch.float64) @ wide
    if wide.shape[0] <= wide.shape[1]:
        sizes = torch.linalg.eigvalsh(_square(wide, seen)).clamp_min(0).flip(0)
    else:
        sizes = torch.linalg.svdvals(_seen(wide, seen)).square()
    return torch.cat([sizes.flip(0).cumsum(0).flip(0), sizes.new_zeros(1)])


def _square(wide: Float[Tensor, "out in"], gram: Float[Tensor, "in in"] | None) -> Float[Tensor, "out out"]:
    product = (wide if gram is None else wide @ gram) @ wide.T
    return (product + product.T) / 2


def _seen(wide: Float[Tensor, "out in"], gram: Float[Tensor, "in in"] | None) -> Float[Tensor, "out in"]:
    """W S, S S^T = gram: by Cholesky, which takes a hundredth of the time, where the matrix has one."""
    if gram is None:
        return wide
    factor, failed = torch.linalg.cholesky_ex((gram + gram.T) / 2)
    return wide @ (square_root(gram) if int(failed) else factor)


def square_root(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """S with S S^T = gram, float64; what rounding made negative counts as 0."""
    symmetric = gram.to(torch.float64)
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    return vectors * values.clamp_min(0).sqrt()


def shared_basis(
    left: Float[Tensor, "out width"], right_gram: Float[Tensor, "width width"], rank: int
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank width"]]:
    """(L', D): what reads a space through L, when it is shrunk from `width` to `rank` channels by D, so that outputs change least.

    L' D is the best approximation of L of this rank in tr((L - L' D) right_gram (L - L' D)^T). right_gram: mean of z z^T of the values z in
    the space: R G R^T where z = R x, R R^T where nothing is known of x. Where several matrices read the space (query heads that share one
    key and value head), they are stacked into L. Nothing larger than width x width is decomposed. At full rank L' D = L.
    """
    rows, corner = torch.linalg.qr(left.to(torch.float64))
    turned = torch.linalg.svd(corner @ square_root(right_gram), full_matrices=False).U[:, :rank]
    return (rows @ turned).to(left.dtype), (turned.T @ corner).to(left.dtype)


def fast_basis(
    left: Float[Tensor, "out width"], rank: int, output_energy: Float[Tensor, "out"] | None = None
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank width"]]:
    """(L', D) of Olica's fast decomposition: D is orthonormal and L' = L D^T, where D D^T spans what L, its outputs weighed, reads most.

    output_energy: mean square of each output. It looks at one of the two matrices only; at full rank L' D = L.
    """
    wide = left.to(torch.float64)
    weighed = wide if output_energy is None else wide * output_energy.to(torch.float64).clamp_min(0).sqrt()[:, None]
    mixing = torch.linalg.svd(weighed, full_matrices=False).Vh[:rank]
    return (wide @ mixing.T).to(left.dtype), mixing.to(left.dtype)


def refit(
    weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], reduction: Float[Tensor, "kept in"], damp: float = 1e-6
) -> Float[Tensor, "out kept"]:
    """What a reader becomes when its inputs x are replaced by `reduction @ x`: min ||W x - W' T x||^2 over the inputs of `gram`.

    damp: added to the diagonal of the reduced Gram matrix, as a share of its mean.
    """
    wide, seen, through = weight.to(torch.float64), gram.to(torch.float64), reduction.to(torch.float64)
    cross = seen @ through.T
    return _solve(through @ cross, wide @ cross, damp).to(weight.dtype)


def _solve(gram: Float[Tensor, "n n"], right: Float[Tensor, "out n"], damp: float) -> Float[Tensor, "out n"]:
    """right (gram + damp mean(diag gram) I)^-1, float64; directions without any energy get nothing."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    values = values.clamp_min(0) + damp * float(gram.diagonal().mean().clamp_min(0))
    least = float(values.max()) * len(values) * torch.finfo(torch.float64).eps
    inverse = torch.where(values > least, 1 / values, 0.0)
    return (right @ vectors) * inverse @ vectors.T


def ridge(gram: Float[Tensor, "in in"], cross: Float[Tensor, "out in"], damp: float) -> Float[Tensor, "out in"]:
    """M = min ||r - M x||^2 + lam ||M||^2, lam = damp mean(diag gram); cross: mean of r x^T."""
    return _solve(gram.to(torch.float64), cross.to(torch.float64), damp).to(cross.dtype)


def reduced_rank(gram: Float[Tensor, "in in"], cross: Float[Tensor, "out in"], rank: int, damp: float) -> Factors:
    """(B, A) of this rank with the least  E||r - B A x||^2 + lam ||B A||^2,  lam = damp mean(diag gram); cross: mean of r x^T.

    The ridge fit M is best without a bound on the rank; what a bound costs more is tr((M - B A)(gram + lam I)(M - B A)^T), which `truncate`
    makes least. The error on what the means were taken over is never above that of no patch.
    """
    wide = gram.to(torch.float64)
    full = ridge(wide, cross.to(torch.float64), damp)
    damped = wide + damp * float(wide.diagonal().mean()) * torch.eye(len(wide), dtype=torch.float64)
    up, down = truncate(full, rank, damped)
    return up.to(cross.dtype), down.to(cross.dtype)


def weighted_patch(
    gram: Float[Tensor, "in in"], cross: Float[Tensor, "out in"], weights: Float[Tensor, "out"], rank: int, damp: float
) -> Factors:
    """(B, A) as published: the ridge fit's rows times `weights` (above 0), truncated by a plain SVD, and divided by them again.

    It is no minimum of the error, and may be worse than no patch.
    """
    scale = weights.to(torch.float64)[:, None]
    full = ridge(gram.to(torch.float64), cross.to(torch.float64), damp)
    up, down = truncate(scale * full, rank)
    return (up / scale).to(cross.dtype), down.to(cross.dtype)
