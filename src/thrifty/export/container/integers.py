"""Layout `int`: value = (code - zero_point) * scale; where only odd codes occur, these are 2 code + 1 of what is stored.

K               codes + levels // 2 as digits in base `levels`, rows of whole bytes
K.scale         [out * groups], see `scales`
K.zero_point    uint8, zero points + levels // 2 as digits in one row; where they are not symmetric
K.mask          uint8, where sparse: then K holds the codes that differ from their zero point, in one row
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.digits import MOST_LEVELS, pack_digits, packed_length, unpack_digits
from thrifty.core.grids import code_limits
from thrifty.export.container.layout import Layout, Parts, groups_of, spread
from thrifty.export.container.masked import MASK, codes_length, digits_of, pack_codes, read_codes
from thrifty.export.container.scales import ScaleType, narrowest, pack_scale, read_scale

ZERO_POINT = "zero_point"


class Integers(Layout):
    """levels: points of the grid. group_size: inputs that share a scale, 0 for the whole row. scale: how scales are stored.

    odd: whether codes are the odd numbers on both sides of zero.
    """

    name: ClassVar[str] = "int"
    part_names: ClassVar[tuple[str, ...]] = ("scale", ZERO_POINT, MASK)

    levels: Annotated[int, Field(ge=2, le=MOST_LEVELS)]
    group_size: Annotated[int, Field(ge=0)] = 0
    scale: ScaleType
    symmetric: bool = True
    sparse: bool = False
    odd: bool = False

    @classmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        symmetric, levels = ZERO_POINT not in encoded.tensors, round(2**encoded.bits)
        odd = symmetric and _lie_apart(encoded.tensors["codes"], levels)
        scale = narrowest(encoded.tensors["scale"])
        return cls(levels=levels, group_size=encoded.group_size, scale=scale, symmetric=symmetric, sparse=sparse and not odd, odd=odd)

    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        codes = encoded.tensors["codes"]
        codes = digits_of((codes - 1) // 2 if self.odd else codes, self.levels)
        tensors = {"scale": pack_scale(encoded.tensors["scale"], self.scale)}
        zero = torch.full((1, 1), self.levels // 2, dtype=torch.int32)
        if not self.symmetric:
            zero = digits_of(encoded.tensors[ZERO_POINT], self.levels)
            tensors[ZERO_POINT] = pack_digits(zero.reshape(1, -1), self.levels).reshape(-1)
        return tensors | pack_codes(codes, self.levels, self._spread(zero, encoded.shape) if self.sparse else None)

    def _spread(self, zero: Tensor, shape: tuple[int, int]) -> Tensor:
        return zero.expand(shape) if self.symmetric else spread(zero, shape[1])

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        groups = groups_of(shape[1], self.group_size)
        kind = torch.int8 if self.levels * (1 + self.odd) <= 256 else torch.int16
        low, count = -(self.levels // 2), shape[0] * groups
        tensors = {"scale": read_scale(parts, "scale", self.scale, (shape[0], groups))}
        zero = torch.full((1, 1), -low, dtype=torch.int32)
        if not self.symmetric:
            packed = parts.take(ZERO_POINT, torch.uint8, packed_length(count, self.levels))
            try:
                zero = unpack_digits(packed[None], self.levels, count).reshape(shape[0], groups).to(torch.int32)
            except ValueError as error:
                raise parts.fail(ZERO_POINT, str(error)) from None
            tensors[ZERO_POINT] = (zero + low).to(kind)
        codes = read_codes(parts, shape, self.levels, self._spread(zero, shape) if self.sparse else None)
        codes = codes.to(torch.int32) + low
        tensors["codes"] = (2 * codes + 1 if self.odd else codes).to(kind)
        return Encoded("int", tensors, shape, math.log2(self.levels), self.group_size)

    @classmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        levels, (out, width) = round(2**outline.bits), outline.shape
        scales = out * groups_of(width, outline.group_size)
        zero_points = packed_length(scales, levels) if ZERO_POINT in outline.tensors else 0
        return codes_length(outline.shape, levels, kept) + 2 * scales + zero_points


def _lie_apart(codes: Tensor, levels: int) -> bool:
    """Whether codes are odd numbers of which neighbouring ones would not go so far."""
    low, high = code_limits(levels)
    if not codes.numel() or (low <= int(codes.min()) and int(codes.max()) <= high):
        return False
    return bool((codes % 2 != 0).all())
