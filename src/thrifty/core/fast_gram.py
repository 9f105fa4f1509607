"""Sums over rows of bfloat16 in C, where this machine has products for that; the twin in plain torch is `core.statistics`.

torch multiplies values of bfloat16 with a result of bfloat16, which is too coarse for a Gram matrix, or turns them into float32 first. The
processor's instruction multiplies pairs of them exactly and adds up in float32, at twice the rate, and half of the product is enough.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from thrifty.base.events import note
from thrifty.base.native import in_threads, library

SOURCE = Path(__file__).with_suffix(".c")

COLUMNS = 48
"""Columns that are packed together, as the C code has them."""

SHARE = 1 << 25
"""Products that are worth a thread of their own."""

TRIALS = ((1, 1), (3, 50), (600, 97))
"""(rows, width) that a fresh library must get right before it is used."""


class Sums(NamedTuple):
    """What `Statistics` holds of some rows, all in float32."""

    gram_sum: Float[Tensor, "width width"]
    low: Float[Tensor, "width"]
    high: Float[Tensor, "width"]
    absolute_sum: Float[Tensor, "width"]
    value_sum: Float[Tensor, "width"]


class _Calls(NamedTuple):
    pack: Callable[..., None]
    multiply: Callable[..., None]


def sums(rows: BFloat16[Tensor, "n width"]) -> Sums | None:
    """The sums over the rows; None where plain torch has to take them."""
    if not rows.is_cpu or rows.dtype != torch.bfloat16 or rows.numel() == 0 or torch.compiler.is_compiling():
        return None
    calls = _calls()
    return None if calls is None else _run(calls, rows.detach().contiguous())


def _run(calls: _Calls, rows: Tensor) -> Sums:
    count, width = rows.shape
    groups = -(-width // COLUMNS)
    packed = torch.empty(groups, -(-count // 2), COLUMNS, dtype=torch.int32)
    figures, product = torch.empty(4, width), torch.zeros(width, width)
    threads = max(1, min(torch.get_num_threads(), groups, count * width**2 // SHARE))
    in_threads(lambda part: calls.pack(rows.data_ptr(), count, width, packed.data_ptr(), figures.data_ptr(), part, threads), range(threads))
    in_threads(lambda part: calls.multiply(packed.data_ptr(), count, width, product.data_ptr(), part, threads), range(threads))
    return Sums(product, *figures)


@cache
def _calls() -> _Calls | None:
    """The functions of the library; None where there is none, where the processor has no such products, or where it is wrong."""
    found = library(SOURCE)
    if found is None or not found.thrifty_gram_here():
        return None
    calls = _Calls(found.thrifty_gram_pack, found.thrifty_gram_multiply)
    at, size = ctypes.c_void_p, ctypes.c_size_t
    calls.pack.argtypes = [at, size, size, at, at, size, size]
    calls.multiply.argtypes = [at, size, size, at, size, size]
    calls.pack.restype = calls.multiply.restype = None
    if not all(_right(calls, *shape) for shape in TRIALS):
        note("the compiled Gram matrix of bfloat16 is wrong on this machine and is not used; torch computes it, in twice as long")
        return None
    return calls


def _right(calls: _Calls, count: int, width: int) -> bool:
    """Whether the library adds up small whole numbers exactly."""
    exact = (torch.arange(count * width) * 37 % 19 - 9.0).reshape(count, width)
    expected = exact.T @ exact, exact.amin(0), exact.amax(0), exact.abs().sum(0), exact.sum(0)
    return all(torch.equal(one, other) for one, other in zip(_run(calls, exact.bfloat16()), expected, strict=True))
