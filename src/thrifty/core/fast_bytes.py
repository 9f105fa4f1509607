"""Rows of inputs as bytes in C, where this machine can compile it; the twin in plain torch is `core.token_bytes`.

It goes twice over a row that is in the nearest cache. Plain torch makes twenty passes over all rows, and where there are few of them each
takes longer to begin than to do; many it shares among threads, and is as fast.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from thrifty.base.events import note
from thrifty.base.native import library

SOURCE = Path(__file__).with_suffix(".c")

KINDS = {torch.float32: 0, torch.bfloat16: 1}

MOST = 1 << 16
"""Values of all rows up to which this is the faster way."""


class _Calls(NamedTuple):
    free_rows: Callable[..., int]
    row_codes: Callable[..., None]


Found = tuple[UInt8[Tensor, "codes in"], Float[Tensor, "tokens 1"], Float[Tensor, "tokens 1"], Bool[Tensor, "tokens"], int]


def free_rows(rows: Float[Tensor, "tokens in"], coarse: float, smallest: float, pieces: int) -> Found | None:
    """(codes, step, low, which tokens are coarse, how many are), as `core.token_bytes.free_bytes` makes them; None where plain torch does.

    codes: with room for a second piece of every token, in those rows that are not said to be filled as they come.
    """
    calls = _calls() if _suits(rows) else None
    if calls is None:
        return None
    count, width = rows.shape
    codes = torch.empty(2 * count, width, dtype=torch.uint8)
    low, step, marked = torch.empty(count, 1), torch.empty(count, 1), torch.empty(count, dtype=torch.bool)
    places = (part.data_ptr() for part in (codes, low, step, marked))
    few = calls.free_rows(rows.data_ptr(), count, width, KINDS[rows.dtype], coarse, smallest, pieces, *places)
    return codes, step, low, marked, few


def row_codes(rows: Float[Tensor, "tokens in"], room: int, step: Tensor, shift: Tensor) -> UInt8[Tensor, "room in"] | None:
    """round(x / step + shift) between -128 and 127, counted from -128; None where plain torch has to do it.

    room: rows of the codes, of which those after the tokens are left as they come. step, shift: float32, [tokens, 1] or one for all.
    """
    calls = _calls() if _suits(rows) else None
    known = all(part.dtype == torch.float32 and part.is_cpu and part.is_contiguous() for part in (step, shift))
    if calls is None or not known or step.numel() != shift.numel() or step.numel() not in (1, len(rows)):
        return None
    codes = torch.empty(room, rows.shape[1], dtype=torch.uint8)
    stride = 0 if step.numel() == 1 else 1
    places = step.data_ptr(), shift.data_ptr(), stride
    calls.row_codes(rows.data_ptr(), *rows.shape, KINDS[rows.dtype], *places, -128, 127, codes.data_ptr())
    return codes


def _suits(rows: Tensor) -> bool:
    plain = rows.is_cpu and rows.is_contiguous() and rows.dtype in KINDS and 0 < rows.numel() <= MOST
    return plain and not rows.requires_grad and not torch.compiler.is_compiling()


@cache
def _calls() -> _Calls | None:
    """The functions of the library; None where there is none, or where it is wrong."""
    found = library(SOURCE)
    if found is None:
        return None
    calls = _Calls(found.thrifty_free_rows, found.thrifty_row_codes)
    at, size, kind, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_float
    calls.free_rows.argtypes = [at, size, size, kind, number, number, number, at, at, at, at]
    calls.free_rows.restype = size
    calls.row_codes.argtypes = [at, size, size, kind, at, at, size, number, number, at]
    calls.row_codes.restype = None
    if not _right(calls):
        note("the compiled rounding of inputs to bytes is wrong on this machine and is not used; torch does it, more slowly")
        return None
    return calls


def _right(calls: _Calls) -> bool:
    """Whether the library does what it should on whole numbers that are codes already, a tail of a vector with them."""
    width = 37
    values = (torch.arange(2 * width) * 29 % 256).reshape(2, width)
    values[:, 0], values[:, 5] = 0, 255
    for kind, code in KINDS.items():
        rows, codes = values.to(kind) - 100, torch.empty(4, width, dtype=torch.uint8)
        low, step, marked = torch.empty(2), torch.empty(2), torch.empty(2, dtype=torch.bool)
        places = [part.data_ptr() for part in (codes, low, step, marked)]
        count = calls.free_rows(rows.data_ptr(), 2, width, code, 1e-9, 1e-8, 254, *places)
        expected = torch.cat([values, torch.full_like(values, 127)])
        if count != 2 or low.tolist() != [-100, -100] or step.tolist() != [1, 1] or not torch.equal(codes.to(torch.int64), expected):
            return False
        shift = torch.zeros(1)
        calls.row_codes(rows.data_ptr(), 2, width, code, step.data_ptr(), shift.data_ptr(), 0, -128, 127, codes.data_ptr())
        if not torch.equal(codes[:2].to(torch.int64), (values - 100).clamp(-128, 127) + 128):
            return False
    return True
