"""Layout `k_quant`: blocks of 256 inputs as GGUF has them.

K            the blocks of a row, then those of the next, byte for byte as in a GGUF file of that type
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.base.records import Encoded
from thrifty.core.k_blocks import pack_blocks, unpack_blocks
from thrifty.core.k_quants import BLOCK, FORMS, Steps
from thrifty.export.container.layout import MAIN, Layout, Parts


class KQuant(Layout):
    """type: of the blocks."""

    name: ClassVar[str] = "k_quant"
    part_names: ClassVar[tuple[str, ...]] = ()

    type: Literal["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]

    @classmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        return cls(type=encoded.standard)  # type: ignore[arg-type]

    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        return {MAIN: blocks_of(encoded).reshape(-1)}

    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        form = FORMS[self.type]
        if shape[1] % BLOCK:
            raise ValueError(f"blocks of {BLOCK} do not divide {shape[1]} inputs")
        content = parts.take(MAIN, torch.uint8, shape[0] * shape[1] // BLOCK * form.nbytes)
        codes, steps = unpack_blocks(content.reshape(shape[0], -1), self.type)
        tensors = {"codes": codes, "multiple": steps.scale.to(torch.int8), "block_scale": steps.block_scale}
        if form.minimum:
            tensors |= {"minimum": steps.minimum.to(torch.int8), "block_minimum": steps.block_minimum}
        if not all(bool(torch.isfinite(tensor).all()) for name, tensor in tensors.items() if name.startswith("block")):
            raise parts.fail(MAIN, "holds numbers that are not finite")
        return Encoded(self.name, tensors, shape, form.rate, form.group_size, self.type, simulated=True)

    @classmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        return outline.shape[0] * outline.shape[1] // BLOCK * FORMS[outline.standard].nbytes


def blocks_of(encoded: Encoded) -> Tensor:
    """The blocks of a matrix, uint8 [out, bytes]. Raises RunError for codes or multiples that they do not hold."""
    form, tensors = FORMS[encoded.standard], encoded.tensors
    for name, low, high in (("codes", form.low, form.high), ("multiple", form.least, form.most), ("minimum", 0, form.most)):
        if name in tensors and not low <= int(tensors[name].min()) <= int(tensors[name].max()) <= high:
            raise RunError(f"{name} of {encoded.standard} lie between {low} and {high}, and some do not")
    scale, shared = tensors["multiple"].to(torch.float32), tensors["block_scale"]
    minimum = tensors.get("minimum", torch.zeros_like(scale)).to(torch.float32)
    return pack_blocks(
        tensors["codes"], Steps(shared, scale, tensors.get("block_minimum", torch.zeros_like(shared)), minimum), encoded.standard
    )
