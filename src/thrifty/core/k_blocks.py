"""The bytes of K-quants, block by block as GGUF has them (`core.k_quants` says what they stand for).

    Q2_K   16 bytes k | m << 4, codes in 2 bits, D, E
    Q3_K   the third bits of the codes, their lower 2 bits, k + 32 in 6 bits, D          (of code + 4)
    Q4_K   D, E, k and m in 6 bits, codes in 4 bits
    Q5_K   D, E, k and m in 6 bits, the fifth bits of the codes, their lower 4 bits
    Q6_K   the lower 4 bits of the codes, their upper 2 bits, k in 8 bits, D             (of code + 32)

Codes of b bits lie in runs: byte r holds, lowest bits first, those of inputs r, r + run, r + 2 run and so on of 8 / b runs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from thrifty.core.k_quants import BLOCK, FORMS, Steps


def pack_blocks(codes: Int[Tensor, "out in"], steps: Steps, kind: str) -> UInt8[Tensor, "out bytes"]:
    """The blocks of a matrix, row after row. kind: the name of the form."""
    form = FORMS[kind]
    blocks = (codes.to(torch.int32) - form.low).unflatten(1, (-1, BLOCK))
    scale, minimum = (part.to(torch.int32).unflatten(1, (-1, BLOCK // form.group_size)) for part in (steps.scale, steps.minimum))
    one, other = _half_bytes(steps.block_scale), _half_bytes(steps.block_minimum)
    if kind == "Q2_K":
        parts = [scale | (minimum << 4), _runs(blocks, 2, 32), one, other]
    elif kind == "Q3_K":
        parts = [_runs(blocks >> 2, 1, 32), _runs(blocks & 3, 2, 32), _sixes(scale + 32), one]
    elif kind == "Q6_K":
        parts = [_runs(blocks & 15, 4, 64), _runs(blocks >> 4, 2, 32), scale & 255, one]
    else:
        fifth = [_runs(blocks >> 4, 1, 32)] if kind == "Q5_K" else []
        parts = [one, other, _pairs_of_sixes(scale, minimum), *fifth, _runs(blocks & 15, 4, 32)]
    return torch.cat([part.to(torch.uint8) for part in parts], dim=2).flatten(1)


def unpack_blocks(content: UInt8[Tensor, "out bytes"], kind: str) -> tuple[Int[Tensor, "out in"], Steps]:
    """(codes, steps) of the blocks of a matrix."""
    form = FORMS[kind]
    blocks = content.unflatten(1, (-1, form.nbytes)).to(torch.int32)
    minimum = other = None
    if kind == "Q2_K":
        pairs, codes, one, other = blocks.split([16, 64, 2, 2], dim=2)
        scale, minimum, codes = pairs & 15, pairs >> 4, _unrun(codes, 2, 32)
    elif kind == "Q3_K":
        third, codes, sixes, one = blocks.split([32, 64, 12, 2], dim=2)
        scale, codes = _unsix(sixes) - 32, _unrun(codes, 2, 32) | (_unrun(third, 1, 32) << 2)
    elif kind == "Q6_K":
        lower, upper, scale, one = blocks.split([128, 64, 16, 2], dim=2)
        scale, codes = (scale ^ 128) - 128, _unrun(lower, 4, 64) | (_unrun(upper, 2, 32) << 4)
    else:
        one, other, sixes, *fifth, codes = blocks.split([2, 2, 12, *([32] if kind == "Q5_K" else []), 128], dim=2)
        (scale, minimum), codes = _unpair_sixes(sixes), _unrun(codes, 4, 32)
        codes = codes | (_unrun(fifth[0], 1, 32) << 4) if fifth else codes
    scales = scale.flatten(1).to(torch.float32)
    shared = _halves(one)
    steps = Steps(
        shared,
        scales,
        torch.zeros_like(shared) if other is None else _halves(other),
        torch.zeros_like(scales) if minimum is None else minimum.flatten(1).to(torch.float32),
    )
    return (codes.flatten(1) + form.low).to(torch.int8), steps


def _half_bytes(numbers: Float[Tensor, "out blocks"]) -> UInt8[Tensor, "out blocks 2"]:
    return numbers.to(torch.float16)[..., None].contiguous().view(torch.uint8)


def _halves(content: Int[Tensor, "out blocks 2"]) -> Float[Tensor, "out blocks"]:
    halves = content.to(torch.uint8).contiguous().view(torch.float16)[..., 0]
    return halves.to(torch.float32).clone(memory_format=torch.contiguous_format)


def _runs(numbers: Int[Tensor, "out blocks 256"], bits: int, run: int) -> Int[Tensor, "out blocks bytes"]:
    """Numbers of some bits, 8 / bits runs to each stretch of bytes."""
    parts = numbers.unflatten(2, (-1, 8 // bits, run))
    shifts = bits * torch.arange(8 // bits, dtype=torch.int32, device=numbers.device)
    return (parts << shifts[:, None]).sum(3).flatten(2)


def _unrun(content: Int[Tensor, "out blocks bytes"], bits: int, run: int) -> Int[Tensor, "out blocks 256"]:
    shifts = bits * torch.arange(8 // bits, dtype=torch.int32, device=content.device)
    return ((content.unflatten(2, (-1, 1, run)) >> shifts[:, None]) & (2**bits - 1)).flatten(2)


def _sixes(numbers: Int[Tensor, "out blocks 16"]) -> Int[Tensor, "out blocks 12"]:
    """Numbers of 6 bits: the lower 4 of numbers i and i + 8 in byte i, the upper 2 of i, i + 4, i + 8 and i + 12 in byte 8 + i."""
    lower, upper = numbers & 15, (numbers >> 4).unflatten(2, (4, 4))
    shifts = 2 * torch.arange(4, dtype=torch.int32, device=numbers.device)
    return torch.cat([lower[..., :8] | (lower[..., 8:] << 4), (upper << shifts[:, None]).sum(2)], dim=2)


def _unsix(content: Int[Tensor, "out blocks 12"]) -> Int[Tensor, "out blocks 16"]:
    lower, upper = content.split([8, 4], dim=2)
    shifts = 2 * torch.arange(4, dtype=torch.int32, device=content.device)
    upper = ((upper[:, :, None] >> shifts[:, None]) & 3).flatten(2)
    return torch.cat([lower & 15, lower >> 4], dim=2) | (upper << 4)


def _pairs_of_sixes(scale: Int[Tensor, "out blocks 8"], minimum: Int[Tensor, "out blocks 8"]) -> Int[Tensor, "out blocks 12"]:
    """Pairs of 6 bits: numbers 0 to 3 in the lower 6 of bytes 0 to 3 and 4 to 7, above them the upper 2 of numbers 4 to 7, whose lower 4
    share bytes 8 to 11."""
    first, second = (part[..., :4] | ((part[..., 4:] >> 4) << 6) for part in (scale, minimum))
    return torch.cat([first, second, (scale[..., 4:] & 15) | ((minimum[..., 4:] & 15) << 4)], dim=2)


def _unpair_sixes(content: Int[Tensor, "out blocks 12"]) -> tuple[Tensor, Tensor]:
    first, second, lower = content.split(4, dim=2)
    scale = torch.cat([first & 63, (lower & 15) | ((first >> 6) << 4)], dim=2)
    return scale, torch.cat([second & 63, (lower >> 4) | ((second >> 6) << 4)], dim=2)
