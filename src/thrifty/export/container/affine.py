"""Layout `affine`: value = code * scale + offset.

K               codes + levels // 2 as digits in base `levels`, rows of whole bytes
K.scale         [out * groups], see `scales`
K.offset        [out * groups], as scales are
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.export.container.layout import Layout, Parts, groups_of
from thrifty.export.container.masked import codes_length, digits_of, pack_codes, read_codes
from thrifty.export.container.scales import ScaleType, narrowest, pack_scale, read_scale

OFFSET = "offset"


class Affine(Layout):
    """bits: of a code. group_size: inputs that share a scale and an offset, 0 for the whole row. scale, offset: how they are stored."""

    name: ClassVar[str] = "affine"
    part_names: ClassVar[tuple[str, ...]] = ("scale", OFFSET)

    bits: Annotated[int, Field(ge=1, le=8)]
    group_size: Annotated[int, Field(ge=0)] = 0
    scale: ScaleType
    offset: ScaleType

    @property
    def levels(self) -> int:
        """Points of the grid."""
        return int(2**self.bits)

    @classmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        kinds = {name: narrowest(encoded.tensors[name]) for name in ("scale", OFFSET)}
        return cls(bits=int(encoded.bits), group_size=encoded.group_size, **kinds)  # type: ignore[arg-type]

    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        tensors = {name: pack_scale(encoded.tensors[name], getattr(self, name)) for name in ("scale", OFFSET)}
        return tensors | pack_codes(digits_of(encoded.tensors["codes"], self.levels), self.levels, None)

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        groups = (shape[0], groups_of(shape[1], self.group_size))
        tensors = {name: read_scale(parts, name, getattr(self, name), groups) for name in ("scale", OFFSET)}
        codes = read_codes(parts, shape, self.levels, None).to(torch.int32) - self.levels // 2
        return Encoded("affine", {**tensors, "codes": codes.to(torch.int8)}, shape, float(self.bits), self.group_size, simulated=True)

    @classmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        scales = outline.shape[0] * groups_of(outline.shape[1], outline.group_size)
        return codes_length(outline.shape, round(2**outline.bits), 1.0) + 4 * scales
