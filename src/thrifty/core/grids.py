"""Integer grids: where their points lie, how a range is chosen, and how a scale is made exact for every container.

A grid of L levels has the signed codes -(L // 2) .. (L - 1) // 2, and value = (code - zero_point) * scale. Without a zero point an even
count reaches one code further below than above; a scale below zero turns that round, so that the far end is where the weights need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.core.fast_grids import Bounds, best_scale

Range = Literal["minmax", "mse"]

SMALLEST_SCALE = 2.0**-16
"""Scales below this would lose bits in float16."""

LARGEST_SCALE = 2.0**12
"""With scales up to this, float16 holds every value of a grid of up to 16 levels: 15 steps are 61440. Larger weights are clipped."""

SHRINKS = tuple(1.0 - 0.05 * step for step in range(11))
"""Parts of the range that the search for the least squared error tries."""

CHUNK = 1 << 17
"""Values that the search looks at together: few enough that all it makes of them stays in a processor's cache."""


def code_limits(levels: int) -> tuple[int, int]:
    """The smallest and the largest signed code of a grid of `levels` points."""
    return -(levels // 2), (levels - 1) // 2


def significant_bits(levels: int, symmetric: bool) -> int:
    """Bits of the scale's significand: 8, so that bfloat16 holds it; 7 where zero_point * scale needs 4 more and must fit float16."""
    return 8 if symmetric or not 8 < levels <= 16 else 7


def snap_scale(
    scale: Float[Tensor, "*shape"], bits: int, smallest: float = SMALLEST_SCALE, largest: float = LARGEST_SCALE
) -> Float[Tensor, "*shape"]:
    """`scale` rounded to `bits` significant bits, from `smallest` to `largest`, its sign kept; 1 where it is 0 (a group of zeros)."""
    inside = scale.abs().clamp(smallest, largest)
    if bits == 8 and scale.dtype == torch.float32:  # as many as bfloat16 has, which takes a tenth of the time
        snapped = inside.to(torch.bfloat16).to(torch.float32)
    else:
        mantissa, exponent = torch.frexp(inside)
        snapped = torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)
    return torch.where(scale.abs() > 0, snapped.copysign(scale), torch.ones_like(snapped))


@dataclass(frozen=True)
class Step:
    """Scale and zero point (None: symmetric) of each group, [out, groups]."""

    scale: Float[Tensor, "out groups"]
    zero_point: Float[Tensor, "out groups"] | None


def step_between(low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], levels: int, symmetric: bool) -> Step:
    """The grid that spans low .. high (low <= 0 <= high), with an exact scale; 0 is always one of its points.

    Symmetric: scale = max(|low|, |high|) / ((L - 1) / 2), so that the largest magnitude lies half a step outside the positive codes, as the
    compressed-tensors format has it. Asymmetric: scale = (high - low) / (L - 1) and an integer zero point.
    """
    smallest, largest = code_limits(levels)
    bits = significant_bits(levels, symmetric)
    if symmetric:
        return Step(snap_scale(torch.maximum(-low, high) / ((levels - 1) / 2), bits), None)
    exact = (high - low) / (levels - 1)
    scale = snap_scale(exact, bits)
    # A range wider than the widest grid is cut at both ends alike, so that both signs stay.
    low = low * (LARGEST_SCALE / exact).clamp_max(1)
    return Step(scale, torch.round(smallest - low / scale).clamp(smallest, largest))


def fit_step(
    groups: Float[Tensor, "out groups size"],
    levels: int,
    symmetric: bool,
    range_rule: Range = "minmax",
    importance: Float[Tensor, "groups size"] | None = None,
) -> Step:
    """The grid of each group. `minmax` spans its values; `mse` takes the part of that span with the least (weighted) squared error, and
    where it is symmetric the sign of the scale."""
    if range_rule == "minmax":
        return step_between(*_span(groups), levels, symmetric)
    rows = max(1, CHUNK // groups[0].numel())
    found = [_least_error(part, levels, symmetric, importance) for part in groups.split(rows)]
    zero_point = None if symmetric else torch.cat([step.zero_point for step in found])
    return Step(torch.cat([step.scale for step in found]), zero_point)


def _span(groups: Float[Tensor, "out groups size"]) -> tuple[Tensor, Tensor]:
    return groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)


def _least_error(groups: Tensor, levels: int, symmetric: bool, importance: Tensor | None) -> Step:
    low, high = _span(groups)
    shrinks = torch.tensor(SHRINKS, dtype=groups.dtype, device=groups.device)[:, None, None]
    tried = step_between(low * shrinks, high * shrinks, levels, symmetric)
    smallest, largest = limits(tried, levels)
    mirrored = symmetric and levels % 2 == 0
    best = best_scale(groups, tried.scale, (smallest, largest), importance, mirrored)
    if mirrored:
        tried = Step(torch.cat([tried.scale, -tried.scale]), None)
    if best is None:
        best = _best_scale_by_passes(groups, tried.scale, (smallest, largest), importance)
    return Step(*(None if part is None else part.gather(0, best[None])[0] for part in (tried.scale, tried.zero_point)))


def _best_scale_by_passes(groups: Tensor, scales: Tensor, bounds: Bounds, importance: Tensor | None) -> Int[Tensor, "out groups"]:
    """`core.fast_grids.best_scale` in plain torch."""
    room = torch.empty_like(groups), torch.empty_like(groups)
    least = torch.full_like(scales[0], torch.inf)
    best = torch.zeros_like(least, dtype=torch.int64)
    for number, scale in enumerate(scales):
        own = tuple(bound[number, ..., None] if isinstance(bound, Tensor) else bound for bound in bounds)
        error = _squared_error(groups, scale, own, importance, room)
        best.masked_fill_(error < least, number)
        least = torch.minimum(least, error)
    return best


def _squared_error(
    groups: Tensor, scale: Tensor, bounds: tuple[Tensor | float, Tensor | float], importance: Tensor | None, room: tuple[Tensor, Tensor]
) -> Tensor:
    """The (weighted) squared error of each group, worked out in multiples of its scale between `bounds`; room: two of the groups' shape."""
    exact, error = room
    torch.div(groups, scale[..., None], out=exact)
    torch.round(exact, out=error)
    torch.clamp(error, *bounds, out=error)
    error.sub_(exact)
    weighted = error if importance is None else torch.mul(error, importance, out=exact)
    return torch.linalg.vecdot(error, weighted).mul_(scale.square())


def limits(step: Step, levels: int) -> tuple[Tensor | float, Tensor | float]:
    """The smallest and the largest multiple of the scale that a code can stand for."""
    smallest, largest = code_limits(levels)
    if step.zero_point is None:
        return float(smallest), float(largest)
    return smallest - step.zero_point, largest - step.zero_point


def round_to(groups: Float[Tensor, "out groups size"], step: Step, levels: int) -> Float[Tensor, "out groups size"]:
    """The nearest point of each group's grid; zeros are positive, so that equal results have equal bytes."""
    scale = step.scale[..., None]
    low, high = limits(step, levels)
    multiple = torch.round(groups / scale)
    if step.zero_point is None:
        multiple.clamp_(low, high)
    else:
        torch.clamp(multiple, low[..., None], high[..., None], out=multiple)
    return multiple.mul_(scale).add_(0.0)


def grouped(values: Float[Tensor, "out in"], group_size: int) -> Float[Tensor, "out groups size"]:
    """The matrix as groups of inputs; 0 is one group a row."""
    out, width = values.shape
    return values.reshape(out, -1, group_size or width)


@dataclass(frozen=True)
class Cells:
    """The nearest point of each entry as arithmetic: round(x / scale) between low and high, times the scale, and 0 where it is not kept.

    scale: None where entries stay as they are. low, high: like `scale`, or for all. size: inputs that share a scale. kept: None where all
    entries are.
    """

    scale: Float[Tensor, "groups out"] | None
    low: Float[Tensor, "groups out"] | float
    high: Float[Tensor, "groups out"] | float
    size: int
    kept: Bool[Tensor, "in out"] | None = None

    @classmethod
    def of(cls, step: Step, levels: int, group_size: int, width: int) -> Cells:
        """Those of `round_to`."""
        low, high = (bound.T.contiguous() if isinstance(bound, Tensor) else bound for bound in limits(step, levels))
        return cls(step.scale.T.contiguous(), low, high, group_size or width)

    @classmethod
    def masked(cls, kept: Bool[Tensor, "in out"]) -> Cells:
        """Entries as they are, or 0."""
        return cls(None, 0.0, 0.0, 1, kept)


Snap = Callable[[Tensor, int, Tensor], None]
"""snap(column [out], index, out [out]): writes the nearest point for one column of a matrix into `out`."""


def column_snap(cells: Cells) -> Snap:
    """The points of grids for one column of a matrix at a time, made for a loop: every call is four operations on contiguous vectors."""
    scales = cells.scale.unbind(0)
    lows, highs = ([bound] * len(scales) if isinstance(bound, float) else bound.unbind(0) for bound in (cells.low, cells.high))

    def snap(column: Tensor, index: int, out: Tensor) -> None:
        group = index // cells.size
        torch.div(column, scales[group], out=out)
        out.round_().clamp_(lows[group], highs[group]).mul_(scales[group])

    return snap
