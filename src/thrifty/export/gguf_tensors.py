"""Matrices as the blocks of 32 weights that llama.cpp reads, made from codes: nothing is rounded a second time.

A block of Q4_0 is a float16 scale d and 32 nibbles q, value d * (q - 8); Q4_1 has a float16 minimum m after d, value d * q + m; Q8_0 is d
and 32 signed bytes, value d * q. Byte j of the nibbles holds weight j in its low half and weight j + 16 in its high half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from thrifty.base.records import Encoded

BLOCK = 32
"""Weights of a block."""

DENSE = {
    torch.bfloat16: GGMLQuantizationType.BF16,
    torch.float16: GGMLQuantizationType.F16,
    torch.float32: GGMLQuantizationType.F32,
}
"""The type that holds a dense matrix, by the type it has in the model."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in the file.

    content: uint8, the bytes of each row [.., bytes]. values: float32 in the shape of the tensor, what every reader must get from them.
    """

    type: GGMLQuantizationType
    content: np.ndarray
    values: np.ndarray


def store(source: Encoded | Tensor) -> Stored:
    """A tensor of the model in the smallest type that holds it exactly.

    Codes become Q4_0, Q4_1 or Q8_0; where none of these holds them, their values become F16 or F32. Other matrices keep their type, and
    vectors become F32, the only type that llama.cpp takes for them.
    """
    if isinstance(source, Encoded):
        return _store_codes(source)
    if source.ndim < 2:
        source = source.to(torch.float32)
    return _store_dense(source)


def _store_codes(encoded: Encoded) -> Stored:
    values = encoded.decode()
    found = _blocks(encoded)
    if found is not None:
        return Stored(*found, values.numpy())
    narrow = values.to(torch.float16)
    return _store_dense(narrow if torch.equal(narrow.to(torch.float32), values) else values)


def _store_dense(values: Tensor) -> Stored:
    if values.dtype not in DENSE:
        values = values.to(torch.float32)
    content = values.contiguous().view(torch.uint8).numpy()
    return Stored(DENSE[values.dtype], content, values.to(torch.float32).numpy())


def _blocks(encoded: Encoded) -> tuple[GGMLQuantizationType, np.ndarray] | None:
    """The type that holds the codes exactly and the bytes of the blocks; None where there is none."""
    width = encoded.shape[1]
    scale = encoded.tensors["scale"]
    if width % BLOCK or (encoded.group_size or width) % BLOCK or not _fits_float16(scale):
        return None
    codes = encoded.tensors["codes"].to(torch.int16)
    zero_point = encoded.tensors.get("zero_point")
    if encoded.bits <= 4:
        if zero_point is None:
            return GGMLQuantizationType.Q4_0, pack_q4_0(codes + 8, scale)
        # counted from the lowest code in use, so that codes of 2 and 3 bits leave the minimum as few bits as their width asks for
        lowest = torch.minimum(codes.min(), zero_point.min())
        minimum = (zero_point - lowest).to(torch.float32) * -scale
        if _fits_float16(minimum):
            return GGMLQuantizationType.Q4_1, pack_q4_1(codes - lowest, scale, minimum)
    if zero_point is not None:
        codes = codes - zero_point.to(torch.int16).repeat_interleave(width // zero_point.shape[1], dim=1)
    if codes.min() < -128 or codes.max() > 127:
        return None
    return GGMLQuantizationType.Q8_0, pack_q8_0(codes, scale)


def _fits_float16(values: Float[Tensor, "..."]) -> bool:
    return torch.equal(values.to(torch.float16).to(torch.float32), values)


def pack_q4_0(nibbles: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> UInt8[np.ndarray, "out bytes"]:
    """Blocks of Q4_0. nibbles: 0 .. 15. scale: one for each group of inputs, a multiple of 32; must fit float16."""
    return _join(_halves(scale, nibbles.shape[1]), _nibbles(nibbles))


def pack_q4_1(
    nibbles: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"], minimum: Float[Tensor, "out groups"]
) -> UInt8[np.ndarray, "out bytes"]:
    """Blocks of Q4_1. nibbles: 0 .. 15. minimum: the value of nibble 0; scale and minimum must fit float16."""
    width = nibbles.shape[1]
    return _join(_halves(scale, width), _halves(minimum, width), _nibbles(nibbles))


def pack_q8_0(codes: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> UInt8[np.ndarray, "out bytes"]:
    """Blocks of Q8_0. codes: -128 .. 127. scale: one for each group of inputs, a multiple of 32; must fit float16."""
    out, width = codes.shape
    return _join(_halves(scale, width), codes.to(torch.int8).view(torch.uint8).reshape(out, width // BLOCK, BLOCK))


def _halves(per_group: Tensor, width: int) -> UInt8[Tensor, "out blocks 2"]:
    """The float16 bytes of a number of each group, repeated for every block of the group."""
    repeats = width // BLOCK // per_group.shape[1]
    return per_group.to(torch.float16).repeat_interleave(repeats, dim=1)[..., None].view(torch.uint8)


def _nibbles(nibbles: Tensor) -> UInt8[Tensor, "out blocks 16"]:
    out, width = nibbles.shape
    low, high = nibbles.to(torch.uint8).reshape(out, width // BLOCK, 2, BLOCK // 2).unbind(2)
    return low | (high << 4)


def _join(*parts: UInt8[Tensor, "out blocks bytes"]) -> UInt8[np.ndarray, "out bytes"]:
    return torch.cat(parts, dim=2).flatten(1).numpy()


def rotary_order(rows: int, heads: int) -> Int[Tensor, "rows"]:
    """Where each row of a query or key matrix comes from when a head's halves are interleaved.

    transformers rotates dimension i of a head together with i + half, llama.cpp's `llama` graph rotates 2 i together with 2 i + 1.
    """
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def take_rows(source: Encoded | Tensor, order: Int[Tensor, "rows"]) -> Encoded | Tensor:
    """The rows of a matrix, or the entries of a vector, in another order; codes, scales and zero points move with their row."""
    if isinstance(source, Tensor):
        return source[order]
    return replace(source, tensors={name: tensor[order] for name, tensor in source.tensors.items()})
