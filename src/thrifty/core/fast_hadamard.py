"""The Hadamard transform in C, where this machine can compile it: `core.hadamard` in plain torch is its tested twin.

Plain torch multiplies with small matrices; adding and subtracting in registers takes a tenth of that at 4,096 values a row, which is
between two and three times what a copy takes (`bench/hadamard.py`). Rows give the same bits in whatever batch they come.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.base.events import note
from thrifty.base.native import in_threads, library

SOURCE = Path(__file__).with_suffix(".c")

KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""Types of the values, as the C code counts them; float16 goes through float32."""

SMALLEST = 16
"""The order of Sylvester's matrix must be this at least: so many values are added at once."""

SHARE = 1 << 19
"""Values that are worth a thread of their own."""

TRIALS = ((1, 16), (1, 64), (1, 512), (1, 1024), (1, 8192), (4, 32))
"""(rows and columns of the outer factor, order of the inner one) that a fresh library must get right before it is used."""

Call = Callable[[int, int, int, int, int, int, "int | None", int], int]


def transformed(
    values: Float[Tensor, "*rows width"], rest: int, outer: Float[Tensor, "base base"] | None
) -> Float[Tensor, "*rows width"] | None:
    """values @ (P (x) S) / sqrt(order) block by block, S Sylvester's matrix of order `rest`; None where plain torch has to do it.

    outer: P^T, what each output sums in a row of its own, +1 and -1, float32; None where there is no P.
    """
    if not _suits(values, rest):
        return None
    call = _call()
    if call is None:
        return None
    if values.dtype == torch.float16:
        return _run(call, values.to(torch.float32), rest, outer).to(torch.float16)
    return _run(call, values, rest, outer)


def _suits(values: Tensor, rest: int) -> bool:
    """Whether these are numbers in memory through which nobody asks for a gradient."""
    return (
        rest >= SMALLEST
        and type(values) in (Tensor, nn.Parameter)
        and values.is_cpu
        and (values.dtype in KINDS or values.dtype == torch.float16)
        and values.numel() > 0
        and not (values.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
    )


def _run(call: Call, values: Tensor, rest: int, outer: Tensor | None) -> Tensor:
    values = values.detach() if values.requires_grad else values
    values = values if values.is_contiguous() else values.contiguous()
    out = torch.empty_like(values)
    count, width, kind = values.numel(), values.shape[-1], KINDS[values.dtype]
    base, place = (1, None) if outer is None else (len(outer), outer.data_ptr())
    if count < 2 * SHARE:
        failed = call(values.data_ptr(), out.data_ptr(), count // width, width, base, rest, place, kind)
    else:
        failed = _shared(call, values, out, (width, base, rest, place, kind))
    if failed:
        raise MemoryError("no memory for a row of a Hadamard transform")
    return out


def _shared(call: Call, values: Tensor, out: Tensor, rest_of_call: tuple[int, int, int, int | None, int]) -> bool:
    """The rows of many values, shared among torch's number of threads; whether one of them failed."""
    width = rest_of_call[0]
    rows = values.numel() // width
    threads = min(values.numel() // SHARE, rows, torch.get_num_threads())
    each, size = -(-rows // threads), width * values.element_size()
    start, end = values.data_ptr(), out.data_ptr()
    parts = [(start + row * size, end + row * size, min(each, rows - row)) for row in range(0, rows, each)]
    return any(in_threads(lambda part: call(*part, *rest_of_call), parts))


@cache
def _call() -> Call | None:
    """The function of the library; None where there is none, or where it is wrong."""
    found = library(SOURCE)
    if found is None:
        return None
    call = found.thrifty_hadamard
    sizes = [ctypes.c_size_t] * 4
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *sizes, ctypes.c_void_p, ctypes.c_int]
    call.restype = ctypes.c_int
    if not all(_right(call, base, rest) for base, rest in TRIALS):
        note("the compiled Hadamard transform is wrong on this machine and is not used; torch computes it, in several times as long")
        return None
    return call


def _right(call: Call, base: int, rest: int) -> bool:
    """Whether the library multiplies one row after the other as the definition does: H_2n = [[H, H], [H, -H]]."""
    width = base * rest
    outer = torch.where(torch.arange(base * base).reshape(base, base) % 3 == 0, -1.0, 1.0) if base > 1 else None
    values = (torch.arange(2 * width) * 37 % 101 - 50.0).reshape(2, width)
    expected = values.reshape(2, base, rest).clone()
    step = 1
    while step < rest:
        pairs = expected.reshape(2, base, -1, 2, step)
        expected = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).reshape(2, base, rest)
        step *= 2
    if outer is not None:
        expected = torch.einsum("rjk,ij->rik", expected, outer)
    expected = expected.reshape(2, width) / width**0.5
    found = [_run(call, values.to(kind), rest, outer).to(torch.float32) for kind in KINDS]
    return all(torch.allclose(one, expected, rtol=8e-3, atol=1e-2) for one in found) and torch.allclose(found[0], expected, atol=1e-3)
