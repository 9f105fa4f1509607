"""Layout `int_columns`: inputs whose codes have different numbers of levels (BAQ).

K            the inputs sorted by their levels, those with equal levels in their order; for each number of levels, its codes input after
             input as digits in that base, in one row of whole bytes. An input with one level takes none
K.levels     int16 [distinct], the numbers of levels that occur, rising
K.order      uint8, for every input in its own place the position of its levels in K.levels, as digits in base `distinct` in one row:
             sorting the inputs by it is the permutation, which takes no bytes of its own
K.low        [out], the smallest value of each row
K.high       [out], the largest
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.base.records import Encoded
from thrifty.core.digits import pack_digits, packed_length, unpack_digits
from thrifty.export.container.layout import MAIN, Layout, Parts
from thrifty.export.container.scales import ScaleType, narrowest, pack_scale, read_scale

DISTINCT = 16
"""Numbers of levels that occur in a matrix, about."""


class Columns(Layout):
    """low, high: how the ends of the rows are stored."""

    name: ClassVar[str] = "int_columns"
    part_names: ClassVar[tuple[str, ...]] = ("levels", "order", "low", "high")

    low: ScaleType
    high: ScaleType

    @classmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        return cls(low=narrowest(encoded.tensors["low"]), high=narrowest(encoded.tensors["high"]))

    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        codes, levels = encoded.tensors["codes"].to(torch.int32), encoded.tensors["levels"].to(torch.int32)
        if bool((codes < 0).any()) or bool((codes >= levels).any()):
            raise RunError("some codes are not below the levels of their input")
        distinct, order = levels.unique(return_inverse=True)
        streams = [pack_digits(codes.T[order == place].reshape(1, -1), int(count)) for place, count in enumerate(distinct)]
        return {
            MAIN: torch.cat(streams, dim=1).reshape(-1),
            "levels": distinct.to(torch.int16),
            "order": pack_digits(order[None], len(distinct)).reshape(-1),
            "low": pack_scale(encoded.tensors["low"], self.low),
            "high": pack_scale(encoded.tensors["high"], self.high),
        }

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        out, width = shape
        distinct = self._distinct(parts, width)
        order = self._order(parts, width, len(distinct))
        counts = torch.bincount(order.long(), minlength=len(distinct)).tolist()
        lengths = [packed_length(out * count, levels) for count, levels in zip(counts, distinct, strict=True)]
        packed = parts.take(MAIN, torch.uint8, sum(lengths))
        codes = torch.zeros(width, out, dtype=torch.int16)
        for place, (levels, part) in enumerate(zip(distinct, packed.split(lengths), strict=True)):
            try:
                found = unpack_digits(part[None], levels, counts[place] * out)
            except ValueError as error:
                raise parts.fail(MAIN, str(error)) from None
            codes[order == place] = found.reshape(counts[place], out).to(torch.int16)
        tensors = {
            "codes": codes.T.clone(memory_format=torch.contiguous_format),
            "levels": torch.tensor(distinct, dtype=torch.int16)[order.long()],
            "low": read_scale(parts, "low", self.low, (out, 1)),
            "high": read_scale(parts, "high", self.high, (out, 1)),
        }
        return Encoded("int_columns", tensors, shape, float(torch.log2(tensors["levels"].to(torch.float64)).mean()))

    def _distinct(self, parts: Parts, width: int) -> list[int]:
        """The numbers of levels that occur."""
        count = parts.count("levels", torch.int16)
        if not 1 <= count <= width:
            raise parts.fail("levels", f"holds {count} values for {width} inputs")
        distinct = parts.take("levels", torch.int16, count).tolist()
        if distinct[0] < 1 or any(second <= first for first, second in pairwise(distinct)):
            raise parts.fail("levels", "does not rise from 1 or more")
        return distinct

    def _order(self, parts: Parts, width: int, distinct: int) -> Tensor:
        """For each input the position of its levels."""
        packed = parts.take("order", torch.uint8, packed_length(width, distinct))
        try:
            return unpack_digits(packed[None], distinct, width)[0]
        except ValueError as error:
            raise parts.fail("order", str(error)) from None

    @classmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        out, width = outline.shape
        codes = round(out * width * outline.bits / 8)  # what digits take above that, rounding the levels takes off
        return codes + 2 * DISTINCT + packed_length(width, DISTINCT) + 2 * 4 * out
