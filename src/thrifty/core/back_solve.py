"""The best values for the entries that a mask keeps, row by row.

    min over v, zero outside the mask  (w - v) G (w - v)^T + damping (v - start)(v - start)^T

With d = v - start this is  (G_KK + damping I) d_K = ((w - start) G)_K  for each row, K its kept inputs: a system of its own in every row.
All rows go through conjugate gradients together, so that each step is one product with G. Any number of steps from d = 0 leaves
(w - v) G (w - v)^T at most where it was, whatever the damping: half the change is the quadratic that conjugate gradients lower, less
damping |d|^2 / 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.masks import apply_mask


class BackSolved(NamedTuple):
    """values: [out, in]. steps: how many were taken. residual: the largest part of a row's first residual that is left."""

    values: Float[Tensor, "out in"]
    steps: int
    residual: float


def back_solve(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    start: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    damping: float = 0.0,
    steps: int = 100,
    tolerance: float = 1e-6,
) -> BackSolved:
    """Values that are zero outside `mask` and lose no more than `start`, which must be zero there.

    damping: in units of the Gram matrix. tolerance: a row is done when its residual, weighed by the diagonal, is this part of the first.
    """
    diagonal = gram.diagonal() + damping
    inverse = torch.where(diagonal > 0, diagonal.reciprocal(), 0.0)
    residual = apply_mask((weight - start) @ gram, mask)
    step = torch.zeros_like(weight)
    scaled = residual * inverse
    direction, size = scaled.clone(), torch.linalg.vecdot(residual, scaled)
    first, taken = size.clone(), 0
    while taken < steps and bool((size > tolerance**2 * first).any()):
        image = apply_mask(direction @ gram, mask).add_(direction, alpha=damping)
        curvature = torch.linalg.vecdot(direction, image)
        length = torch.where((curvature > 0) & (size > tolerance**2 * first), size / curvature, 0.0)[:, None]
        step.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        torch.mul(residual, inverse, out=scaled)
        after = torch.linalg.vecdot(residual, scaled)
        direction.mul_(torch.where(size > 0, after / size, 0.0)[:, None]).add_(scaled)
        size, taken = after, taken + 1
    left = torch.where(first > 0, size / first, 0.0).amax().clamp_min(0).sqrt() if len(first) else first.sum()
    return BackSolved(start + step, taken, float(left))
