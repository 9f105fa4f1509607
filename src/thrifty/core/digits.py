"""Codes of any number of levels as bytes, without gaps.

A code is a digit in base `levels`. Of a power of two, 2^b, digit i takes bits i b .. i b + b - 1 of the bytes, lowest bits first. Of other
bases k digits share w bytes, the first digit being the lowest (5 trits a byte), where that takes fewer bits than whole ones; (k, w) is
what needs the fewest bytes a digit of all w up to 7, the smallest w of equals. A row that ends within such a group ends with the bytes
that its last digits need.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

MOST_LEVELS = 1 << 16
MOST_BYTES = 7
"""Bytes of a group of digits at most: its value must fit a signed word of 64 bits."""

CHUNK = 1 << 22
"""Codes that are worked on at once."""


@cache
def group_of(levels: int) -> tuple[int, int]:
    """(digits, bytes) of the groups that the digits of a base are packed in."""
    bits = (levels - 1).bit_length()
    digits = 8 // math.gcd(8, bits)
    best = (digits, digits * bits // 8)
    if levels & (levels - 1) == 0:
        return best
    for size in range(1, MOST_BYTES + 1):
        digits = _most_digits(levels, size)
        if digits * best[1] > best[0] * size:
            best = (digits, size)
    return best


def _most_digits(levels: int, size: int) -> int:
    """How many digits fit so many bytes."""
    digits = 0
    while levels ** (digits + 1) <= 256**size:
        digits += 1
    return digits


def _base(levels: int) -> int:
    """The base that codes are written in: the next power of two where groups of digits save nothing."""
    bits = (levels - 1).bit_length()
    digits, size = group_of(levels)
    return 1 << bits if digits * bits == 8 * size else levels


@cache
def packed_length(count: int, levels: int) -> int:
    """Bytes of a row of `count` codes, each from 0 to levels - 1."""
    if levels == 1 or count == 0:
        return 0
    digits, size = group_of(levels)
    whole, rest = divmod(count, digits)
    base = _base(levels)
    return whole * size + ((base**rest - 1).bit_length() + 7) // 8


def pack_digits(codes: Int[Tensor, "rows n"], levels: int) -> UInt8[Tensor, "rows bytes"]:
    """Each row of codes as bytes; codes lie in 0 .. levels - 1, levels in 1 .. 65536."""
    rows, count = codes.shape
    length = packed_length(count, levels)
    if rows * length == 0:
        return torch.empty(rows, length, dtype=torch.uint8, device=codes.device)
    at_once = max(1, CHUNK // count)
    return torch.cat([_pack(chunk, levels)[:, :length] for chunk in codes.split(at_once)])


def unpack_digits(packed: UInt8[Tensor, "rows bytes"], levels: int, count: int) -> Int[Tensor, "rows n"]:
    """The codes of each row, uint8 up to 256 levels, else int32. Raises ValueError where a code is not below `levels`."""
    rows, kind = packed.shape[0], torch.uint8 if levels <= 256 else torch.int32
    if levels == 1 or count == 0:
        return torch.zeros(rows, count, dtype=kind, device=packed.device)
    codes = torch.empty(rows, count, dtype=kind, device=packed.device)
    at_once = max(1, CHUNK // count)
    for start in range(0, rows, at_once):
        codes[start : start + at_once] = _unpack(packed[start : start + at_once], levels, count)
    return codes


def _pack(codes: Tensor, levels: int) -> Tensor:
    digits, size = group_of(levels)
    rows, base = codes.shape[0], _base(levels)
    whole = torch.uint8 if size == 1 else torch.int64
    groups = torch.zeros(rows, -(-codes.shape[1] // digits) * digits, dtype=whole, device=codes.device)
    groups[:, : codes.shape[1]] = codes
    groups = groups.reshape(rows, -1, digits)
    if size > MOST_BYTES:
        return _bits_to_bytes(groups, size)
    value = groups[..., digits - 1].clone()
    for place in range(digits - 2, -1, -1):
        value = value.mul_(base).add_(groups[..., place])
    if size == 1:
        return value
    shifts = 8 * torch.arange(size, device=codes.device)
    return ((value[..., None] >> shifts) & 255).to(torch.uint8).reshape(rows, -1)


def _unpack(packed: Tensor, levels: int, count: int) -> Tensor:
    digits, size = group_of(levels)
    rows, base = packed.shape[0], _base(levels)
    groups = -(-count // digits)
    content = torch.zeros(rows, groups * size, dtype=torch.uint8, device=packed.device)
    content[:, : packed.shape[1]] = packed
    content = content.reshape(rows, groups, size)
    if size > MOST_BYTES:
        codes = _bytes_to_codes(content, digits)
    else:
        value = _whole(content)
        codes = torch.empty(rows, groups, digits, dtype=torch.uint8 if base <= 256 else torch.int32, device=packed.device)
        if base & (base - 1) == 0:  # its digits fill the bytes
            for place in range(digits):
                codes[..., place] = (value >> (place * (base.bit_length() - 1))) & (base - 1)
        else:
            for place in range(digits):
                rest = value // base
                codes[..., place] = value - rest * base
                value = rest
            if bool(value.any()):
                raise ValueError(f"holds a code that is not below {levels}")
    codes = codes.reshape(rows, -1)[:, :count]
    if levels < base and bool((codes >= levels).any()):
        raise ValueError(f"holds a code that is not below {levels}")
    return codes


def _whole(content: Tensor) -> Tensor:
    """The number that the bytes of each group are, [rows, groups]; uint8 where they are single ones, which takes a tenth of the time."""
    if content.shape[-1] == 1:
        return content[..., 0]
    value = content[..., 0].to(torch.int64)
    for place in range(1, content.shape[-1]):
        value |= content[..., place].to(torch.int64) << (8 * place)
    return value


def _bits_to_bytes(groups: Tensor, size: int) -> Tensor:
    """Eight codes of `size` bits as `size` bytes."""
    places = torch.arange(size, device=groups.device)
    bits = ((groups[..., None] >> places) & 1).reshape(*groups.shape[:2], size, 8)
    return (bits << torch.arange(8, device=groups.device)).sum(-1).to(torch.uint8).reshape(groups.shape[0], -1)


def _bytes_to_codes(content: Tensor, digits: int) -> Tensor:
    """Eight codes out of as many bytes as they have bits."""
    size = content.shape[-1]
    bits = ((content[..., None].to(torch.int32) >> torch.arange(8, device=content.device, dtype=torch.int32)) & 1).reshape(
        *content.shape[:2], digits, size
    )
    return (bits << torch.arange(size, device=content.device, dtype=torch.int32)).sum(-1).to(torch.int32)
