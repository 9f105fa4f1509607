"""Fewer channels: a space is looked at along some orthonormal directions only, those that hold most of its energy.

    h' = h Q,   Q [width, kept],   Q^T Q = 1        what is lost of h:  ||h - h Q Q^T||^2

Where a mean is subtracted from h later on, one of the kept channels stands for it: Q maps a row of equal values to a row of equal values,
and the other directions are at right angles to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """x -> x Q along the last axis. matrix: Q [width, kept], its columns orthonormal, float32."""

    matrix: Float[Tensor, "width kept"]

    def of(self, values: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows kept"]:
        """values @ Q."""
        return values @ self.matrix.to(values.device, values.dtype)

    def back(self, values: Float[Tensor, "*rows kept"]) -> Float[Tensor, "*rows width"]:
        """values @ Q^T: the nearest rows of the full width that `of` maps to these."""
        return values @ self.matrix.to(values.device, values.dtype).T


def principal(gram: Float[Tensor, "width width"], kept: int) -> Float[Tensor, "width kept"]:
    """The orthonormal directions along which the energy x^T gram x is largest, descending; float64.

    What all others hold is the sum of the eigenvalues that are left out.
    """
    return torch.linalg.eigh(gram.to(torch.float64)).eigenvectors.flip(1)[:, :kept].contiguous()


def normalised(rows: Float[Tensor, "*rows width"], *, centred: bool) -> Float[Tensor, "tokens width"]:
    """Rows as a norm without gain sees them: mean square 1, and (centred) mean 0; float32."""
    rows = rows.reshape(-1, rows.shape[-1]).to(torch.float32)
    if centred:
        rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def without_mean(width: int) -> Float[Tensor, "width others"]:
    """An orthonormal basis [width, width - 1] of all rows whose mean is 0: the other columns of the reflection that maps the first axis
    to the constants, so that each is nearly an axis itself; float64."""
    axis = -torch.full((width,), width**-0.5, dtype=torch.float64)
    axis[0] += 1
    identity = torch.eye(width, dtype=torch.float64)
    return (identity - 2 * torch.outer(axis, axis) / (axis @ axis).clamp_min(1e-300))[:, 1:]


def keeping_mean(directions: Float[Tensor, "others kept"]) -> Float[Tensor, "width kept_and_mean"]:
    """Q [others + 1, kept + 1] out of directions among rows without a mean (in the basis of `without_mean`): it keeps the mean, too."""
    others, kept = directions.shape
    width, narrow = others + 1, kept + 1
    across = without_mean(width) @ directions.to(torch.float64) @ without_mean(narrow).T
    return across + (width * narrow) ** -0.5


def drawn(width: int, *, keeps_mean: bool) -> Float[Tensor, "width width"]:
    """A rotation drawn at random, which keeps the mean where that is asked for; float64."""
    free = width - keeps_mean
    turned = torch.linalg.qr(torch.randn(free, free, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    return keeping_mean(turned) if keeps_mean else turned


def refit(gram: Float[Tensor, "width width"], matrix: Float[Tensor, "width kept"], damp: float) -> Float[Tensor, "width kept"]:
    """R: what a matrix W that read x is multiplied by, so that W R reads x Q and loses least of W x; float64.

        R = argmin E ||x - R Q^T x||^2 = gram Q (Q^T gram Q)^-1

    gram: mean of x x^T. damp: is added to the diagonal of what is inverted, as a share of its mean. Q itself where x Q and the rest of x
    have nothing to do with each other.
    """
    gram, matrix = gram.to(torch.float64), matrix.to(torch.float64)
    read = gram @ matrix
    inside = matrix.T @ read
    level = damp * inside.diagonal().mean()
    # the damping pulls towards Q, not towards 0
    return torch.linalg.solve(inside + level * torch.eye(len(inside), dtype=inside.dtype), (read + level * matrix).T).T


Pair = tuple[Float[Tensor, "width width"], Float[Tensor, "width width"]]


def best_read(matrix: Float[Tensor, "width kept"], pairs: Callable[[], Iterable[Pair]], steps: int) -> Float[Tensor, "width kept"]:
    """Orthonormal directions that what reads them loses least with, each refitted to them; float64.

        min over Q of  sum over pairs of  min over R of  E ||A (x - R Q^T x)||^2 = tr(M (G - G Q (Q^T G Q)^-1 Q^T G))

    pairs: gives (G, M) anew for every pass: the mean of x x^T, and A^T A of what reads x. matrix: where to begin. At most `steps` steps of
    conjugate gradients on the set of all subspaces, none of which makes the sum larger.
    """
    matrix = torch.linalg.qr(matrix.to(torch.float64)).Q
    value, slope = _gained(matrix, pairs())
    way, length = slope, 0.1 / float(slope.norm().clamp_min(1e-300))
    for _ in range(steps):
        if float((way * slope).sum()) <= 0:
            way = slope
        rise = float((way * slope).sum())
        for _ in range(8):
            moved = torch.linalg.qr(matrix + length * way).Q
            new_value, new_slope = _gained(moved, pairs())
            if new_value >= value + 1e-4 * length * rise:
                break
            length /= 4
        else:
            break
        turned = new_slope - _across(moved, slope)
        share = max(0.0, float((new_slope * turned).sum() / slope.square().sum().clamp_min(1e-300)))
        way = new_slope + share * _across(moved, way)
        done = new_value - value <= 1e-7 * abs(value)
        matrix, value, slope, length = moved, new_value, new_slope, 2 * length
        if done:
            break
    return matrix


def _gained(matrix: Float[Tensor, "width kept"], pairs: Iterable[Pair]) -> tuple[float, Float[Tensor, "width kept"]]:
    """(what is left of the energy of all outputs, its slope)."""
    value, slope = 0.0, torch.zeros_like(matrix)
    for gram, reading in pairs:
        read = gram @ matrix
        inside = matrix.T @ read
        factor = torch.linalg.cholesky(inside + 1e-9 * inside.diagonal().mean() * torch.eye(len(inside), dtype=inside.dtype))
        back = torch.cholesky_solve(read.T, factor).T
        out = reading @ back
        value += float((out * read).sum())
        slope += 2 * (gram @ out - back @ (read.T @ out))
    return value, slope


def _across(matrix: Float[Tensor, "width kept"], way: Float[Tensor, "width kept"]) -> Float[Tensor, "width kept"]:
    """What of a way leads out of the subspace."""
    return way - matrix @ (matrix.T @ way)
