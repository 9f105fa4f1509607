"""Layout `dense`: values as they are, of which only those that are not zero are stored; zeros come back positive.

K         uint8, the bytes of the values that are not zero, row after row
K.mask    uint8, see `masked`
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.export.container.layout import MAIN, Layout, Parts
from thrifty.export.container.masked import MASK, mask_length, pack_mask, read_mask


class Values(Layout):
    """dtype: of the values."""

    name: ClassVar[str] = "dense"
    part_names: ClassVar[tuple[str, ...]] = (MASK,)

    dtype: Literal["float32", "bfloat16", "float16"]

    @classmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        return cls(dtype=str(encoded.tensors["values"].dtype).removeprefix("torch."))

    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        values = encoded.tensors["values"]
        mask = values != 0
        return {MAIN: values[mask].view(torch.uint8), MASK: pack_mask(mask)}

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        kind = getattr(torch, self.dtype)
        mask = read_mask(parts, shape)
        stored = parts.take(MAIN, torch.uint8, int(mask.sum()) * kind.itemsize)
        values = torch.zeros(shape, dtype=kind)
        values[mask] = stored.clone().view(kind)
        return Encoded("dense", {"values": values}, shape, bits=8.0 * kind.itemsize)

    @classmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        entries = round(outline.shape[0] * outline.shape[1] * kept)
        return mask_length(outline.shape) + entries * outline.tensors["values"].dtype.itemsize
