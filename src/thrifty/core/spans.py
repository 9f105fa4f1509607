"""Grids that span a group from its smallest to its largest value: L levels, value = minimum + code * scale, code = 0 .. L - 1.

    scale = (max - min) / (L - 1)        code = round((value - minimum) / scale)

Unlike those of `core.grids`, zero need not be a point, and what is kept beside the codes is a float minimum. Scale and minimum are held in
the type of the values, so that the minimum is exact and a group of equal values is, too; codes are those for the scale as it is held. For
weights, whose grids are sought and go into files, there is `core.affine_grids`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class Spanned(NamedTuple):
    """Groups on their grids. codes: of the shape of the values; scale, minimum: of their type, with 1 for the dimension of a group."""

    codes: UInt8[Tensor, "*shape"]
    scale: Float[Tensor, "*grids"]
    minimum: Float[Tensor, "*grids"]


def to_span(values: Float[Tensor, "*shape"], levels: int, dim: int) -> Spanned:
    """The nearest point of the grid of each group. levels: from 2 to 256. dim: the dimension along which values share a grid.

    |value - point| <= scale / 2, and what the type of the values rounds off the scale, (levels - 1) times. A group that holds a number that
    is not finite gets a scale or minimum that is none, so that all of it reads back as NaN or infinite.
    """
    low = values.amin(dim, keepdim=True)
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    span = values.amax(dim, keepdim=True).to(exact.dtype) - low.to(exact.dtype)
    scale = (span / (levels - 1)).to(values.dtype)
    steps = (exact - low.to(exact.dtype)) / scale.to(exact.dtype)
    codes = steps.round_().clamp_(0, levels - 1).nan_to_num_(0.0).to(torch.uint8)  # 0 / 0 where all values are equal
    return Spanned(codes, scale, low)


def from_span(codes: UInt8[Tensor, "*shape"], scale: Float[Tensor, "*grids"], minimum: Float[Tensor, "*grids"]) -> Float[Tensor, "*shape"]:
    """The points that codes stand for, in the type of `scale`; worked out in float32 at least and rounded once."""
    dtype = torch.promote_types(scale.dtype, torch.float32)
    return codes.to(dtype).mul_(scale.to(dtype)).add_(minimum.to(dtype)).to(scale.dtype)
