"""Layout `additive`: the inputs of a group are a sum of codewords, one from each codebook, times the scale of the row.

K               codes as digits in base `entries`, `codebooks` of them for each group, rows of whole bytes
K.codebooks     [codebooks * entries * group_size], in the type that `numbers` names
K.scale         [out], see `scales`
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.base.records import Encoded
from thrifty.core.codebooks.additive import rate_of_sums
from thrifty.core.digits import MOST_LEVELS, pack_digits, packed_length, unpack_digits
from thrifty.export.container.layout import MAIN, Layout, Parts, groups_of
from thrifty.export.container.scales import ScaleType, narrowest, pack_scale, read_scale

CODEBOOKS = "codebooks"


class Additive(Layout):
    """codebooks: codewords that are added up. entries: of each. group_size: inputs of a group. numbers, scale: how they are stored."""

    name: ClassVar[str] = "additive"
    part_names: ClassVar[tuple[str, ...]] = (CODEBOOKS, "scale")

    codebooks: Annotated[int, Field(ge=1, le=64)]
    entries: Annotated[int, Field(ge=2, le=MOST_LEVELS)]
    group_size: Annotated[int, Field(ge=1)]
    numbers: ScaleType
    scale: ScaleType

    @classmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        books = encoded.tensors[CODEBOOKS]
        return cls(
            codebooks=books.shape[0],
            entries=books.shape[1],
            group_size=books.shape[2],
            numbers=narrowest(books),
            scale=narrowest(encoded.tensors["scale"]),
        )

    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        codes = encoded.tensors["codes"].to(torch.int32)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.entries:
            raise RunError(f"some codes are not below the {self.entries} entries of their codebook")
        return {
            MAIN: pack_digits(codes.reshape(codes.shape[0], -1), self.entries).reshape(-1),
            CODEBOOKS: pack_scale(encoded.tensors[CODEBOOKS], self.numbers),
            "scale": pack_scale(encoded.tensors["scale"], self.scale),
        }

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        out, groups = shape[0], groups_of(shape[1], self.group_size)
        # The file's header is asked for the codebooks first: settings alone could name more numbers than memory holds.
        books = read_scale(parts, CODEBOOKS, self.numbers, (self.codebooks, self.entries, self.group_size))
        scale = read_scale(parts, "scale", self.scale, (out, 1))
        count = groups * self.codebooks
        packed = parts.take(MAIN, torch.uint8, out * packed_length(count, self.entries))
        try:
            codes = unpack_digits(packed.reshape(out, -1), self.entries, count)
        except ValueError as error:
            raise parts.fail(MAIN, str(error)) from None
        kind = torch.uint8 if self.entries <= 256 else torch.uint16
        tensors = {"codes": codes.to(kind).reshape(out, groups, self.codebooks), CODEBOOKS: books, "scale": scale}
        rate = rate_of_sums(self.codebooks, math.log2(self.entries), self.group_size, shape)
        return Encoded(self.name, tensors, shape, rate, self.group_size, simulated=True)

    @classmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        books, codes = outline.tensors[CODEBOOKS], outline.tensors["codes"]
        return codes.shape[0] * packed_length(codes.shape[1] * codes.shape[2], books.shape[1]) + 2 * books.numel() + 2 * outline.shape[0]
