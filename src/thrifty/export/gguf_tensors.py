"""Matrices as the blocks of 32 and 256 weights that llama.cpp reads, made from codes: nothing is rounded a second time.

A block of Q4_0 is a float16 scale d and 32 nibbles q, value d * (q - 8); Q4_1 has a float16 minimum m after d, value d * q + m; Q8_0 is d
and 32 signed bytes, value d * q. Byte j of the nibbles holds weight j in its low half and weight j + 16 in its high half.

Blocks of 256 with one scale hold few levels in few bits. TQ1_0 has q from 0 to 2 in base 3, five to a byte, then d, value d * (q - 1);
TQ2_0 has q from 0 to 3 in two bits, then d, value d * (q - 1); Q2_K has sixteen pairs of nibbles (s, t), q in two bits, d and a float16
minimum m, value d * s * q - m * t, where s and t are 1 here. What was solved for K-quants has its own s and t, and its own type.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.export.container.k_quant import blocks_of

BLOCK = 32
"""Weights of a block."""

LARGE_BLOCK = 256
"""Weights of a block of few levels."""

TRITS = ((5, 32), (5, 16), (4, 4))
"""How TQ1_0 cuts a block: bytes with five weights, with five and with four; weight k of a byte lies k times the number of bytes on."""

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

    Codes become TQ1_0, TQ2_0 or Q2_K where they have up to 3 or 4 levels and groups of 256 weights or multiples of it, otherwise Q4_0, Q4_1
    or Q8_0; where none of these holds them, their values become F16 or F32. Other matrices keep their type, and vectors become F32, the
    only type that llama.cpp takes for them.
    """
    if isinstance(source, Encoded):
        return _store_codes(source)
    if source.ndim < 2:
        source = source.to(torch.float32)
    return _store_dense(source)


def _store_codes(encoded: Encoded) -> Stored:
    values = encoded.decode()
    if encoded.layout == "k_quant":
        return Stored(GGMLQuantizationType[encoded.standard], blocks_of(encoded).numpy(), values.numpy())
    found = BLOCKS[encoded.layout](encoded) if encoded.layout in BLOCKS else None
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
    if not _divides(encoded):
        return None
    codes = encoded.tensors["codes"].to(torch.int16)
    zero_point = encoded.tensors.get("zero_point")
    if (encoded.group_size or width) % LARGE_BLOCK == 0:
        found = _few_levels(codes, scale) if zero_point is None else _few_levels_above(codes, scale, zero_point.to(torch.int16))
        if found is not None:
            return found
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


def _shifted_blocks(encoded: Encoded) -> tuple[GGMLQuantizationType, np.ndarray] | None:
    """`_blocks` for grids that need not meet zero: Q4_1, or Q2_K where blocks of 256 hold them; None beyond 4 bits."""
    if not _divides(encoded) or encoded.bits > 4:
        return None
    codes, (scale, offset) = encoded.tensors["codes"].to(torch.int16), (encoded.tensors[name] for name in ("scale", "offset"))
    if encoded.bits <= 2 and (encoded.group_size or encoded.shape[1]) % LARGE_BLOCK == 0 and _fits_float16(2 * scale - offset):
        return GGMLQuantizationType.Q2_K, pack_q2_k(codes + 2, scale, 2 * scale - offset)
    minimum = offset - 8 * scale
    return (GGMLQuantizationType.Q4_1, pack_q4_1(codes + 8, scale, minimum)) if _fits_float16(minimum) else None


def _divides(encoded: Encoded) -> bool:
    """Whether groups are whole blocks, and a block can have the scale."""
    width = encoded.shape[1]
    return width % BLOCK == 0 and (encoded.group_size or width) % BLOCK == 0 and _fits_float16(encoded.tensors["scale"])


BLOCKS = {"int": _blocks, "affine": _shifted_blocks}
"""Which blocks hold the codes of a layout."""


def _few_levels(codes: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> tuple[GGMLQuantizationType, np.ndarray] | None:
    """Up to four levels without zero points in blocks of 256; None where they do not fit."""
    smallest, largest = int(codes.min()), int(codes.max())
    if smallest >= -1 and largest <= 1:
        return GGMLQuantizationType.TQ1_0, pack_tq1_0(codes + 1, scale)
    if smallest >= -2 and largest <= 1:
        return GGMLQuantizationType.TQ2_0, pack_tq2_0(1 - codes, -scale)
    if _odd(codes):
        return _few_levels_above((codes + 3) // 2, 2 * scale, torch.full_like(scale, 1.5))
    return None


def _odd(codes: Int[Tensor, "out in"]) -> bool:
    """Whether codes are -3, -1, 1 and 3, as those of `zero_free`."""
    return int(codes.min()) >= -3 and int(codes.max()) <= 3 and bool((codes % 2 == 1).all())


def has_few_levels(encoded: Encoded) -> bool:
    """Whether blocks of 256 would hold the codes in two bits or fewer, if groups were as long as that."""
    codes = encoded.tensors["codes"]
    return int(codes.max()) - int(codes.min()) <= 3 or (encoded.layout == "int" and "zero_point" not in encoded.tensors and _odd(codes))


def _few_levels_above(
    codes: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"], zero_point: Tensor
) -> tuple[GGMLQuantizationType, np.ndarray] | None:
    """Up to four levels (code - zero point) * scale in blocks of 256; None where they do not fit."""
    lowest = codes.min()
    minimum = (zero_point - lowest) * scale
    if int(codes.max() - lowest) > 3 or not (_fits_float16(scale) and _fits_float16(minimum)):
        return None
    return GGMLQuantizationType.Q2_K, pack_q2_k(codes - lowest, scale, minimum)


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


def pack_tq1_0(trits: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> UInt8[np.ndarray, "out bytes"]:
    """Blocks of TQ1_0. trits: 0 .. 2. scale: one for each group of inputs, a multiple of 256; must fit float16."""
    out, width = trits.shape
    parts = trits.reshape(out, width // LARGE_BLOCK, LARGE_BLOCK).split([count * size for count, size in TRITS], dim=2)
    packed = []
    for part, (count, size) in zip(parts, TRITS, strict=True):
        powers = torch.tensor([81, 27, 9, 3, 1][:count], dtype=torch.int32, device=part.device)
        number = (part.to(torch.int32).unflatten(2, (count, size)) * powers[:, None]).sum(2)
        # Readers take trit after trit as the whole part of three times what is left of byte / 256: the byte is rounded up.
        packed.append(((number * 256 + 242) // 243).to(torch.uint8))
    return _join(*packed, _halves(scale, width, LARGE_BLOCK))


def pack_tq2_0(codes: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> UInt8[np.ndarray, "out bytes"]:
    """Blocks of TQ2_0. codes: 0 .. 3. scale: one for each group of inputs, a multiple of 256; must fit float16."""
    return _join(_quarters(codes), _halves(scale, codes.shape[1], LARGE_BLOCK))


def pack_q2_k(
    codes: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"], minimum: Float[Tensor, "out groups"]
) -> UInt8[np.ndarray, "out bytes"]:
    """Blocks of Q2_K, all of whose parts have the scale and the minimum of the block. codes: 0 .. 3. minimum: what is taken off; must fit
    float16 as the scale must."""
    packed = _quarters(codes)
    ones = torch.full((*packed.shape[:2], 16), 0x11, dtype=torch.uint8, device=packed.device)
    width = codes.shape[1]
    return _join(ones, packed, _halves(scale, width, LARGE_BLOCK), _halves(minimum, width, LARGE_BLOCK))


def _halves(per_group: Tensor, width: int, block: int = BLOCK) -> UInt8[Tensor, "out blocks 2"]:
    """The float16 bytes of a number of each group, repeated for every block of the group."""
    repeats = width // block // per_group.shape[1]
    return per_group.to(torch.float16).repeat_interleave(repeats, dim=1)[..., None].view(torch.uint8)


def _nibbles(nibbles: Tensor) -> UInt8[Tensor, "out blocks 16"]:
    out, width = nibbles.shape
    low, high = nibbles.to(torch.uint8).reshape(out, width // BLOCK, 2, BLOCK // 2).unbind(2)
    return low | (high << 4)


def _quarters(codes: Tensor) -> UInt8[Tensor, "out blocks 64"]:
    """Two bits a weight: byte j of each 32 holds weights j, j + 32, j + 64 and j + 96, lowest bits first."""
    out, width = codes.shape
    first, second, third, fourth = codes.to(torch.uint8).reshape(out, width // LARGE_BLOCK, 2, 4, 32).unbind(3)
    return (first | (second << 2) | (third << 4) | (fourth << 6)).flatten(2)


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
