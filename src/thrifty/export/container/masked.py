"""Matrices of which only what is not zero is stored: a bit for every entry, rows of whole bytes, then the others in one row."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.core.digits import pack_digits, packed_length, unpack_digits
from thrifty.core.grids import code_limits
from thrifty.export.container.layout import MAIN, Parts

MASK = "mask"


def mask_length(shape: tuple[int, int]) -> int:
    """Bytes of a mask."""
    return shape[0] * packed_length(shape[1], 2)


def pack_mask(mask: Bool[Tensor, "out in"]) -> Tensor:
    """One row of bytes; a set bit is an entry that is stored."""
    return pack_digits(mask.to(torch.uint8), 2).reshape(-1)


def read_mask(parts: Parts, shape: tuple[int, int]) -> Bool[Tensor, "out in"]:
    """The mask of a matrix."""
    packed = parts.take(MASK, torch.uint8, mask_length(shape))
    return unpack_digits(packed.reshape(shape[0], -1), 2, shape[1]).to(torch.bool)


def digits_of(codes: Int[Tensor, "*shape"], levels: int) -> Int[Tensor, "*shape"]:
    """Signed codes counted from the lowest. Raises RunError for codes that a grid of so many levels does not have."""
    low, high = code_limits(levels)
    if codes.numel() and not (low <= int(codes.min()) and int(codes.max()) <= high):
        raise RunError(f"codes of {levels} levels lie between {low} and {high}, and some do not")
    return codes.to(torch.int32) - low


def pack_codes(codes: Int[Tensor, "out in"], levels: int, zero: Int[Tensor, "out in"] | None) -> dict[str, Tensor]:
    """Codes from 0 to levels - 1, row by row; with `zero`, the codes of zero, only those that differ, as if that code did not exist."""
    if zero is None:
        return {MAIN: pack_digits(codes, levels).reshape(-1)}
    mask = codes != zero
    others = (codes - (codes > zero).to(codes.dtype))[mask]
    return {MAIN: pack_digits(others[None], levels - 1).reshape(-1), MASK: pack_mask(mask)}


def read_codes(parts: Parts, shape: tuple[int, int], levels: int, zero: Int[Tensor, "out in"] | None) -> Int[Tensor, "out in"]:
    """What `pack_codes` was given."""
    if zero is None:
        packed = parts.take(MAIN, torch.uint8, shape[0] * packed_length(shape[1], levels))
        return _digits(parts, packed.reshape(shape[0], -1), levels, shape[1])
    mask = read_mask(parts, shape)
    count = int(mask.sum())
    packed = parts.take(MAIN, torch.uint8, packed_length(count, levels - 1))
    others = _digits(parts, packed[None], levels - 1, count)[0].to(torch.int32)
    codes = zero.to(torch.int32, copy=True)
    codes[mask] = others + (others >= codes[mask]).to(torch.int32)
    return codes


def _digits(parts: Parts, packed: Tensor, levels: int, count: int) -> Tensor:
    try:
        return unpack_digits(packed, levels, count)
    except ValueError as error:
        raise parts.fail(MAIN, str(error)) from None


def codes_length(shape: tuple[int, int], levels: int, kept: float) -> int:
    """Bytes of the codes, with their mask where only a share of them is kept and that is less."""
    whole = shape[0] * packed_length(shape[1], levels)
    if kept >= 1:
        return whole
    return mask_length(shape) + packed_length(round(shape[0] * shape[1] * kept), levels - 1)
