"""The scale with the least squared error for grids of a few magnitudes, found exactly by sorting.

    min over s and codes t of  sum_i c_i (w_i - s t_i)^2,    |t_i| one of  m_0 < m_1 < ... < m_L,    the sign of t_i that of w_i

For a given s every |t_i| is the magnitude nearest to |w_i| / s, so it rises past (m_j + m_{j+1}) / 2 when s falls below
|w_i| / ((m_j + m_{j+1}) / 2). Sorted by where that happens, the codes take L n + 1 forms, and in each of them the error is a parabola in s
with its lowest point at <c |w|, |t|> / <c |t|, |t|>: the nearest scale that containers hold is the best one of that form. The best of all
forms is therefore the best of all scales, rounding of scales included.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.grids import CHUNK, snap_scale

SCALE_BITS = 8
"""Significant bits of a scale: what bfloat16 holds."""


def least_squares_scale(
    groups: Float[Tensor, "out groups size"], magnitudes: tuple[float, ...], importance: Float[Tensor, "groups size"] | None = None
) -> Float[Tensor, "out groups"]:
    """The best scale of each group, in the type of `groups`; 1 for a group of zeros.

    magnitudes: rising, 0 or more. importance: weight of each squared error, not negative; groups of which nothing matters are fitted as if
    all of it did.
    """
    if importance is not None:
        importance = importance.to(torch.float64)
        importance = torch.where(importance.sum(-1, keepdim=True) > 0, importance, 1.0)
    rows = max(1, CHUNK // (groups[0].numel() * len(magnitudes)))
    return torch.cat([_best(part.to(torch.float64), magnitudes, importance) for part in groups.split(rows)]).to(groups.dtype)


def _best(groups: Float[Tensor, "out groups size"], magnitudes: tuple[float, ...], importance: Tensor | None) -> Tensor:
    size = groups.abs()
    weight = torch.ones_like(size) if importance is None else importance.expand_as(size)
    weighted = weight * size
    rises = tuple(pairwise(magnitudes))
    # What each rise adds to <c |w|, |t|> and <c |t|, |t|>, in the order in which a falling scale meets them.
    meets = torch.cat([size, *(size * 2 / (low + high) for low, high in rises)], -1)
    meets[..., : size.shape[-1]] = torch.inf  # every code has the first magnitude from the start
    order = meets.argsort(dim=-1, descending=True, stable=True)
    products = torch.cat([weighted * magnitudes[0], *(weighted * (high - low) for low, high in rises)], -1)
    squares = torch.cat([weight * magnitudes[0] ** 2, *(weight * (high**2 - low**2) for low, high in rises)], -1)
    product, square = (part.gather(-1, order).cumsum(-1)[..., size.shape[-1] - 1 :] for part in (products, squares))
    scale = snap_scale(torch.where(square > 0, product / square, 0.0), SCALE_BITS)
    best = (scale * (2 * product - scale * square)).argmax(-1, keepdim=True)
    return scale.gather(-1, best)[..., 0]
