"""Layout `numbers`: value = numbers[code] * scale.

K            codes as digits in base `levels`, rows of whole bytes
K.scale      [out * groups], see `scales`
K.numbers    float32 [levels], where the table has no name
K.whole      float32 [1], where scales are floats of 8 bits over it
K.mask       uint8, where sparse: then K holds the codes that differ from the first one that stands for zero, in one row
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.base.records import Encoded
from thrifty.core.digits import MOST_LEVELS
from thrifty.core.formats import format_named, name_of
from thrifty.export.container.layout import MAIN, Layout, Parts, groups_of
from thrifty.export.container.masked import MASK, codes_length, pack_codes, read_codes
from thrifty.export.container.scales import ScaleType, narrowest, pack_scale, read_scale, stored_type


class Numbers(Layout):
    """levels: numbers in the table. numbers: its name, empty where it is stored. group_size: inputs that share a scale, 0 for all of them.
    scale: how scales are stored. whole: whether they are floats over one. standard: what others call numbers and scales together.
    """

    name: ClassVar[str] = "numbers"
    part_names: ClassVar[tuple[str, ...]] = ("scale", "numbers", "whole", MASK)

    levels: Annotated[int, Field(ge=2, le=MOST_LEVELS)]
    numbers: str = ""
    group_size: Annotated[int, Field(ge=0)] = 0
    scale: ScaleType
    whole: bool = False
    standard: str = ""
    sparse: bool = False

    @classmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        table, whole = encoded.tensors["numbers"], encoded.tensors.get("whole")
        return cls(
            levels=len(table),
            numbers=name_of(table) or "",
            group_size=encoded.group_size,
            scale=narrowest(encoded.tensors["scale"], whole),
            whole=whole is not None,
            standard=encoded.standard,
            sparse=sparse and bool((table == 0).any()),
        )

    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        table, whole = encoded.tensors["numbers"], encoded.tensors.get("whole")
        codes = encoded.tensors["codes"].to(torch.int32)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.levels or bool(table[codes.long()].isnan().any())):
            raise RunError("some codes stand for no number")
        tensors = {"scale": pack_scale(encoded.tensors["scale"], self.scale, whole)}
        if not self.numbers:
            tensors["numbers"] = table.to(torch.float32).clone()
        if whole is not None:
            tensors["whole"] = whole.reshape(-1).clone()
        return tensors | pack_codes(codes, self.levels, _zeros(table, encoded.shape) if self.sparse else None)

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        table = self._table(parts)
        tensors, whole = {"numbers": table}, None
        if self.whole:
            tensors["whole"] = whole = parts.take("whole", torch.float32, 1)
        if whole is not None and not (bool(torch.isfinite(whole)) and float(whole) > 0):
            raise parts.fail("whole", "is no positive number")
        if self.scale == "float8_e4m3fn" and whole is None:
            raise parts.fail("whole", "is missing")
        tensors["scale"] = read_scale(parts, "scale", self.scale, (shape[0], groups_of(shape[1], self.group_size)), whole)
        if self.sparse and not bool((table == 0).any()):
            raise parts.fail(MASK, "stands beside numbers without a zero")
        codes = read_codes(parts, shape, self.levels, _zeros(table, shape) if self.sparse else None)
        codes = codes.to(torch.uint8 if self.levels <= 256 else torch.int32)
        if bool(table.isnan().any()) and bool(table.isnan()[codes.long()].any()):
            raise parts.fail(MAIN, "holds a code that stands for no number")
        tensors["codes"] = codes
        return Encoded("numbers", tensors, shape, math.log2(self.levels), self.group_size, self.standard)

    def _table(self, parts: Parts) -> Tensor:
        if not self.numbers:
            return parts.take("numbers", torch.float32, self.levels)
        form = format_named(self.numbers)
        if form is None or len(form.numbers) != self.levels:
            raise parts.fail(MAIN, f"has numbers called {self.numbers!r} with {self.levels} levels, which are not known")
        return form.numbers

    @classmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        scale, table = outline.tensors["scale"], outline.tensors.get("numbers")
        kind = scale.dtype if scale.dtype.itemsize < 4 else stored_type("bfloat16")
        stored = 4 * len(table) if table is not None and name_of(table) is None else 0
        whole = 4 if kind == torch.float8_e4m3fn else 0
        return codes_length(outline.shape, round(2**outline.bits), kept) + kind.itemsize * scale.numel() + stored + whole


def _zeros(table: Tensor, shape: tuple[int, int]) -> Tensor:
    """The code of zero in every place."""
    return torch.full((1, 1), int((table == 0).nonzero()[0]), dtype=torch.int32).expand(shape)
