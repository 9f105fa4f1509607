"""Numbers of a small format times one scale a group: how the scales are chosen so that every container holds them exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.formats import FLOATS, Format
from thrifty.core.grids import CHUNK, SHRINKS, Range, snap_scale

ScaleRule = Literal["real", "power_of_two", "e4m3"]

SMALLEST, LARGEST = 2.0**-100, 2.0**100
"""Scales lie between these: bfloat16 and an exponent of 8 bits hold them, and float32 their products with every number of a format."""

NEIGHBOURS = (1.0, 2.0, 0.5)
"""Powers of two beside the first one that the search for the least squared error tries."""


@dataclass(frozen=True)
class Standard:
    """numbers: the format of the numbers. group_size: inputs that share a scale, 0 for the whole row. scale: what scales may be."""

    numbers: str
    group_size: int
    scale: ScaleRule


STANDARDS = {
    "nvfp4": Standard("e2m1", 16, "e4m3"),
    "mxfp4": Standard("e2m1", 32, "power_of_two"),
    "mxfp6": Standard("e2m3", 32, "power_of_two"),
    "mxfp8": Standard("e4m3", 32, "power_of_two"),
    "fp8": Standard("e4m3", 0, "real"),
}
"""What others call these, and have files for."""


@dataclass(frozen=True)
class Scales:
    """local: what each group's numbers are multiplied by, [out, groups]. whole: what makes `local` numbers of e4m3 (that rule only)."""

    local: Float[Tensor, "out groups"]
    whole: float | None = None


def fit_scales(
    groups: Float[Tensor, "out groups size"],
    form: Format,
    rule: ScaleRule,
    range_rule: Range = "minmax",
    importance: Float[Tensor, "groups size"] | None = None,
) -> Scales:
    """The scale of each group. `minmax` makes its largest magnitude the format's; `mse` takes what has the least (weighted) squared error.

    real: any number of 8 significant bits. power_of_two: 2^(floor(log2 max |w|) - floor(log2 largest)), as MX has it: what is too large is
    clipped. e4m3: a float of 8 bits over a power of two for the whole matrix, as NVFP4 has it.
    """
    most = groups.abs().amax(-1)
    whole = _whole(most, form) if rule == "e4m3" else None
    first = _round_scale(most / form.largest, rule, form, whole)
    if range_rule == "minmax":
        return Scales(first, whole)
    tried = [_round_scale(most / form.largest * part, rule, form, whole) for part in (NEIGHBOURS if rule == "power_of_two" else SHRINKS)]
    rows = max(1, CHUNK // groups[0].numel())
    parts = zip(groups.split(rows), *(scale.split(rows) for scale in tried), strict=True)
    return Scales(torch.cat([_least_error(part, scales, form, importance) for part, *scales in parts]), whole)


def _round_scale(exact: Float[Tensor, "out groups"], rule: ScaleRule, form: Format, whole: float | None) -> Tensor:
    """The nearest scale that a container holds; groups of zeros have any."""
    if rule == "power_of_two":
        return floor_power(exact * form.largest / floor_power(torch.tensor(form.largest)).to(exact))
    return nearest_scale(exact, rule, whole)


def nearest_scale(exact: Float[Tensor, "*shape"], rule: ScaleRule, whole: float | None = None) -> Float[Tensor, "*shape"]:
    """The nearest scale that a container holds, some other where it is 0; whole: see `Scales`."""
    if rule == "real":
        return snap_scale(exact, 8, SMALLEST, LARGEST)
    if rule == "power_of_two":
        return floor_power(exact * (4 / 3))  # the next power is nearer from one and a half on
    scale = FLOATS["e4m3"]().nearest(exact * whole)
    least = 2.0**-9  # the smallest positive number of e4m3
    return torch.where(exact > 0, scale.clamp_min(least), torch.ones_like(scale)) / whole


def floor_power(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The largest power of two that is not above each value, within `SMALLEST` and `LARGEST`; 1 for zero."""
    exponent = torch.frexp(values.clamp(SMALLEST, LARGEST)).exponent - 1
    return torch.where(values > 0, torch.ldexp(torch.ones_like(values), exponent), torch.ones_like(values))


def _whole(most: Float[Tensor, "out groups"], form: Format) -> float:
    """The power of two that brings the largest scale of a matrix just under the largest number of e4m3."""
    largest = most.max() / form.largest
    return float(floor_power(FLOATS["e4m3"]().largest / largest)) if largest > 0 else 1.0


def _least_error(groups: Tensor, scales: list[Tensor], form: Format, importance: Tensor | None) -> Float[Tensor, "out groups"]:
    """Of several scales the one with the least squared error of each group; the first among equals."""
    errors = []
    for scale in scales:
        error = (round_to(groups, scale, form) - groups).square_()
        errors.append((error if importance is None else error * importance).sum(-1))
    best = torch.stack(errors).argmin(0)
    return torch.stack(scales).gather(0, best[None])[0]


def round_to(groups: Float[Tensor, "out groups size"], scale: Float[Tensor, "out groups"], form: Format) -> Tensor:
    """The nearest number times its group's scale."""
    scale = scale[..., None]
    return form.nearest(groups / scale) * scale
