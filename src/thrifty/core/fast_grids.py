"""Two loops over the entries of a matrix in C, where this machine can compile them: inputs fixed one after the other, and the search for
the part of a range with the least error.

Their twins in plain torch are `weights.solve.obs` and `core.grids`: many short passes, each over memory, which take five to ten times as
long. Sums of losses differ from theirs in the last bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.events import note
from thrifty.base.native import library

if TYPE_CHECKING:
    from thrifty.core.grids import Cells

SOURCE = Path(__file__).with_suffix(".c")

MOST = 32
"""Inputs that a panel has at most."""

Bounds = tuple["Tensor | float", "Tensor | float"]


class _Calls(NamedTuple):
    panel: Callable[..., int]
    best_scale: Callable[..., int]


def fixed_panel(
    error: Float[Tensor, "n out"],
    carried: Float[Tensor, "n out"],
    values: Float[Tensor, "n out"],
    factor: Float[Tensor, "n n"],
    cells: Cells,
    inputs: Int[Tensor, "n"],
    row_loss: Float[Tensor, "out"],
) -> Float[Tensor, "n"] | None:
    """Fix a few inputs one by one: each becomes what `cells` has next to it, once it has made up for the errors of those before it.

    error: what the inputs are; turns into their errors. carried: sum of the errors of inputs before these, times their entries of the
    factor. values: is written. factor: of the Gram matrix. inputs: which ones these are. row_loss: is added to. Returns the losses of the
    inputs; None where plain torch has to do it.
    """
    scale, low, high, kept = cells.scale, cells.low, cells.high, cells.kept
    numbers = [part for part in (error, carried, values, row_loss, scale, low, high) if isinstance(part, Tensor)]
    odd = factor.stride(1) != 1 or (kept is not None and (kept.dtype != torch.bool or not kept.is_contiguous()))
    if odd or not _suit(*numbers) or len(error) > MOST:
        return None
    calls = _calls()
    if calls is None:
        return None
    inverse, group, column_loss = factor.diagonal().reciprocal(), inputs // cells.size, torch.zeros(len(error), dtype=torch.float64)
    places = (error.data_ptr(), carried.data_ptr(), values.data_ptr())
    failed = calls.panel(
        *places, *error.shape, factor.data_ptr(), factor.stride(0), inverse.data_ptr(), *_bounded(scale, low, high), _place(kept),
        group.data_ptr(), inputs.data_ptr(), row_loss.data_ptr(), column_loss.data_ptr(),
    )  # fmt: skip
    return None if failed else column_loss.to(error.dtype)


def best_scale(
    groups: Float[Tensor, "out groups size"],
    scale: Float[Tensor, "tries out groups"],
    bounds: Bounds,
    importance: Float[Tensor, "groups size"] | None,
    mirrored: bool = False,
) -> Int[Tensor, "out groups"] | None:
    """Which of several scales has the least (weighted) squared error, for each group; None where plain torch has to look.

    bounds: the smallest and the largest multiple of the scale, which lie on both sides of 0, for all or like `scale`. mirrored: all of them
    are tried with the other sign, too, and are numbered on from the last.
    """
    numbers = [part for part in (groups, scale, *bounds, importance) if isinstance(part, Tensor)]
    if not _suit(*numbers) or not groups.numel():
        return None
    calls = _calls()
    if calls is None:
        return None
    tries, out, count = scale.shape
    best = torch.empty(out, count, dtype=torch.int64)
    sizes, tried = (out, count, groups.shape[2]), _bounded(scale, *bounds)
    calls.best_scale(groups.data_ptr(), *sizes, _place(importance), *tried, tries, int(mirrored), best.data_ptr())
    return best


def _suit(*tensors: Tensor) -> bool:
    """Whether these are numbers in memory, one after the other."""
    return all(part.dtype == torch.float32 and part.is_cpu and part.is_contiguous() and not part.requires_grad for part in tensors)


def _place(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _bounded(scale: Tensor | None, low: Tensor | float, high: Tensor | float) -> tuple[int | None, int | None, int | None, float, float]:
    """Where scales and bounds lie, and the bounds where they are the same for all."""
    one, other = (bound if isinstance(bound, Tensor) else None for bound in (low, high))
    return _place(scale), _place(one), _place(other), 0.0 if one is not None else float(low), 0.0 if other is not None else float(high)


@cache
def _calls() -> _Calls | None:
    """The functions of the library; None where there is none, or where it is wrong."""
    found = library(SOURCE)
    if found is None:
        return None
    calls = _Calls(found.thrifty_panel, found.thrifty_best_scale)
    at, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float
    calls.panel.argtypes = [at, at, at, size, size, at, size, at, at, at, at, number, number, at, at, at, at, at]
    calls.best_scale.argtypes = [at, size, size, size, at, at, at, at, number, number, size, ctypes.c_int, at]
    if not _right(calls):
        note("the compiled search for points of grids is wrong on this machine and is not used; torch does it, more slowly")
        return None
    return calls


def _right(calls: _Calls) -> bool:
    """Whether the library does what it should on small whole numbers, whose products are exact."""
    width, scale, low, high = 147, 2.0, -2.0, 1.0
    factor = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0], [0.0, 0.0, 2.0]])
    weight, carried = (torch.arange(3.0 * width).reshape(3, width) * step % 23 - 11 for step in (7, 5))
    kept = torch.arange(3 * width).reshape(3, width) % 5 > 0
    behind, values, errors, missed = carried.clone(), torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(weight)
    for row in range(3):
        aim = weight[row] + behind[row] / factor[row, row]
        values[row] = torch.where(kept[row], torch.round(aim / scale).clamp(low, high) * scale, 0.0)
        errors[row], missed[row] = weight[row] - values[row], (aim - values[row]) ** 2 * factor[row, row] ** 2
        behind += factor[row, :, None] * errors[row]
    found, error, row_loss, column_loss = torch.empty_like(values), weight.clone(), torch.zeros(width), torch.zeros(3, dtype=torch.float64)
    scales, inverse = torch.full((2, width), scale), factor.diagonal().reciprocal()
    group, inputs = torch.tensor([0, 1, 1]), torch.arange(3)
    places = (error, carried, found, factor, inverse, scales, torch.full_like(scales, low), kept, group, inputs, row_loss, column_loss)
    at = [part.data_ptr() for part in places]
    calls.panel(*at[:3], 3, width, at[3], 3, *at[4:7], None, 0.0, high, *at[7:])
    fixed = found.equal(values) and error.equal(errors) and row_loss.equal(missed.sum(0)) and column_loss.equal(missed.double().sum(1))
    tried, best = torch.tensor([1.0, 2.0, 4.0])[:, None, None].expand(3, 3, 1).contiguous(), torch.empty(3, 1, dtype=torch.int64)
    counts = torch.arange(width) % 3 + 1.0
    at = [part.data_ptr() for part in (weight, counts, tried, best)]
    calls.best_scale(at[0], 3, 1, width, *at[1:3], None, None, low, high, 3, 1, at[3])
    signed = torch.cat([tried, -tried])
    exact = weight / signed
    losses = (((torch.round(exact).clamp(low, high) - exact) * signed).square() * counts).sum(-1)
    return fixed and best[:, 0].equal(losses.argmin(0))
