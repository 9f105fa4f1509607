"""K-quants: grids of llama.cpp's blocks of 256 inputs, where the scale of a group is a small whole multiple of one that the block shares.

    value = (D k_g) q - E m_g,   q a code of 2 to 6 bits,   k_g and m_g whole numbers of 4 to 8 bits,   D and E one float16 each a block

Q3_K and Q6_K have signed codes and no second term. Products are exact in float32, so that every reader gets the same values.

Scales are fitted by least squares. Each group alone first, from parts of its range; then its block's D and E, its own k and m, and the
codes take turns, and none of these steps raises the (weighted) squared error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.grids import CHUNK, SHRINKS, grouped
from thrifty.core.plane import solve_pair

BLOCK = 256
"""Inputs that share D and E."""

ROUNDS = 4
"""How often blocks, groups and codes take turns."""

REACH = 8
"""How far from the line of least squares other multiples are tried at the end: the error has many low points."""

FINEST = 2.0**-10
"""D is at least this part of E: then a group's smallest step is more than what float32 leaves of its largest values."""

_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Form:
    """bits: of a code. group_size: inputs that share a scale. low, high: codes. least, most: what scales of groups are multiples of D by.

    minimum: whether there is the second term; its multiples go from 0 to `most`. nbytes: of a block.
    """

    bits: int
    group_size: int
    low: int
    high: int
    least: int
    most: int
    minimum: bool
    nbytes: int

    @property
    def rate(self) -> float:
        """Bits of a weight, everything counted."""
        return 8 * self.nbytes / BLOCK


FORMS = {
    "Q2_K": Form(2, 16, 0, 3, 0, 15, True, 84),
    "Q3_K": Form(3, 16, -4, 3, -32, 31, False, 110),
    "Q4_K": Form(4, 32, 0, 15, 0, 63, True, 144),
    "Q5_K": Form(5, 32, 0, 31, 0, 63, True, 176),
    "Q6_K": Form(6, 16, -32, 31, -128, 127, False, 210),
}
"""By the names that they have in GGUF."""


@dataclass(frozen=True)
class Steps:
    """What groups are rounded to. block_scale, block_minimum: D and E, float32 that float16 holds, [out, blocks]. scale, minimum: k and m,
    whole numbers in float32, [out, groups]; zeros where a form has no second term."""

    block_scale: Float[Tensor, "out blocks"]
    scale: Float[Tensor, "out groups"]
    block_minimum: Float[Tensor, "out blocks"]
    minimum: Float[Tensor, "out groups"]

    @property
    def step(self) -> Float[Tensor, "out groups"]:
        """D k of each group."""
        return _over_groups(self.block_scale, self.scale) * self.scale

    @property
    def offset(self) -> Float[Tensor, "out groups"]:
        """E m of each group."""
        return _over_groups(self.block_minimum, self.minimum) * self.minimum


def codes_of(groups: Float[Tensor, "out groups size"], steps: Steps, form: Form) -> Float[Tensor, "out groups size"]:
    """The nearest codes, in the type of `groups`."""
    return _codes(groups, steps.step[..., None], steps.offset[..., None], form)


def values_of(codes: Float[Tensor, "out groups size"], steps: Steps) -> Float[Tensor, "out groups size"]:
    """What codes stand for, float32; zeros are positive."""
    return (codes.to(torch.float32) * steps.step[..., None] - steps.offset[..., None]).add_(0.0)


def fit_steps(values: Float[Tensor, "out in"], form: Form, importance: Float[Tensor, "in"] | None = None) -> Steps:
    """The steps of a matrix like `values` with the least (weighted) squared error that is found; 256 must divide its width.

    importance: weight of each input's error; groups of which nothing matters are fitted as if all of it did.
    """
    groups = grouped(values.to(torch.float32), form.group_size)
    weight = torch.ones_like(groups[0]) if importance is None else importance.to(groups).reshape(groups.shape[1:])
    weight = torch.where(weight.sum(-1, keepdim=True) > 0, weight, 1.0)
    rows = max(1, CHUNK // groups[0].numel())
    found = [_fit(part, weight, form) for part in groups.split(rows)]
    return Steps(*(torch.cat([getattr(part, name) for part in found]) for name in ("block_scale", "scale", "block_minimum", "minimum")))


def _over_groups(per_block: Tensor, like: Tensor) -> Float[Tensor, "out groups"]:
    return per_block.repeat_interleave(like.shape[1] // per_block.shape[1], dim=1)


def over_blocks(per_group: Float[Tensor, "out groups"], form: Form) -> Float[Tensor, "out blocks of_block"]:
    """What groups have, block by block."""
    return per_group.unflatten(1, (-1, BLOCK // form.group_size))


def _codes(groups: Tensor, step: Tensor, offset: Tensor, form: Form) -> Tensor:
    return torch.round((groups + offset) / torch.where(step == 0, 1.0, step)).clamp_(form.low, form.high).masked_fill_(step == 0, 0.0)


def half(values: Tensor) -> Tensor:
    """The nearest numbers that float16 holds."""
    return values.clamp(-_LARGEST, _LARGEST).to(torch.float16).to(torch.float32)


def block_pair(scale: Float[Tensor, "*shape"], minimum: Float[Tensor, "*shape"], form: Form) -> tuple[Tensor, Tensor]:
    """D and E as a block holds them, from what they should be."""
    if not form.minimum:
        return half(scale), torch.zeros_like(half(scale))
    minimum = half(minimum.clamp_min(0))
    return half(torch.maximum(scale.clamp_min(0).to(torch.float32), FINEST * minimum)), minimum


def multiples(exact: Tensor, unit: Tensor, least: int, most: int) -> Tensor:
    """The nearest whole multiples of a unit that a block holds; 0 where the unit is 0."""
    return torch.round(exact.to(torch.float32) / torch.where(unit == 0, 1.0, unit)).clamp_(least, most).masked_fill_(unit == 0, 0.0)


# -- least squares -----------------------------------------------------------------------------------------------------


def _fit(groups: Tensor, weight: Tensor, form: Form) -> Steps:
    step, offset = _alone(groups, weight, form)
    peaks = over_blocks(step, form)
    peak = peaks.gather(2, peaks.abs().argmax(2, keepdim=True))[..., 0]
    unit, least = block_pair(peak / (form.least or form.most), over_blocks(offset, form).amax(2) / form.most, form)
    steps = Steps(unit, step, least, offset)
    steps = replace(
        steps,
        scale=multiples(step, _over_groups(unit, step), form.least, form.most),
        minimum=multiples(offset, _over_groups(least, offset), 0, form.most),
    )
    for _ in range(ROUNDS):
        steps = _better_groups(groups, weight, steps, form)
        steps = _better_blocks(groups, weight, steps, form)
    return _better_groups(groups, weight, steps, form, REACH)


def _alone(groups: Tensor, weight: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """The best step and offset of each group, if nothing were shared."""
    best_step, best_offset = torch.zeros_like(groups[..., 0]), torch.zeros_like(groups[..., 0])
    least = torch.full_like(best_step, torch.inf)
    for step, offset in _starts(groups, form):
        codes = _codes(groups, step[..., None], offset[..., None], form)
        step, offset = _line(groups, codes, weight, step, form)
        error = _error(groups, weight, step, offset, form)
        less = error < least
        least = torch.where(less, error, least)
        best_step, best_offset = torch.where(less, step, best_step), torch.where(less, offset, best_offset)
    return best_step, best_offset


def _starts(groups: Tensor, form: Form) -> Iterator[tuple[Tensor, Tensor]]:
    """Steps and offsets to start from: parts of the range, and both signs of the step where codes reach further on one side."""
    if form.minimum:
        low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        for part in SHRINKS:
            yield part * (high - low) / form.high, -part * low
        return
    size = groups.abs().amax(-1)
    for part in SHRINKS:
        for sign in (-1, 1):
            yield part * sign * size / form.low, torch.zeros_like(size)


def _line(groups: Tensor, codes: Tensor, weight: Tensor, step: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Step and offset of least squares for these codes; the step as it was where all codes are equal."""
    dot = torch.linalg.vecdot
    weighted = weight * codes
    squares, product = dot(weighted, codes), dot(weighted, groups)
    along = torch.where(squares > 0, product / squares, step)
    if not form.minimum:
        return along, torch.zeros_like(along)
    total, first, mean = weight.sum(-1), weighted.sum(-1), dot(weight.expand_as(groups), groups)
    spread = squares * total - first.square()
    both = torch.where(spread > 0, (product * total - first * mean) / spread, step)
    offset = (both * first - mean) / total
    above = offset >= 0
    return torch.where(above, both, along).clamp_min(0), torch.where(above, offset, 0.0)


def _error(groups: Tensor, weight: Tensor, step: Tensor, offset: Tensor, form: Form) -> Float[Tensor, "out groups"]:
    """The weighted squared error of each group with its nearest codes."""
    codes = _codes(groups, step[..., None], offset[..., None], form)
    error = codes.mul_(step[..., None]).sub_(offset[..., None]).sub_(groups)
    return torch.linalg.vecdot(error.square(), weight.expand_as(error))


def _better_groups(groups: Tensor, weight: Tensor, steps: Steps, form: Form, reach: int = 1) -> Steps:
    """Other multiples of each group where they lose less: those up to `reach` from the line of least squares, each with its minimum."""
    exact, _ = _line(groups, codes_of(groups, steps, form), weight, steps.step, form)
    unit, least_unit = (_over_groups(part, steps.scale) for part in (steps.block_scale, steps.block_minimum))
    near = multiples(exact, unit, form.least, form.most)
    best, least = steps, _error(groups, weight, steps.step, steps.offset, form)
    total, mean = weight.sum(-1), torch.linalg.vecdot(groups, weight.expand_as(groups))
    for shift in range(-reach, reach + 1):
        scale, minimum = (near + shift).clamp_(form.least, form.most), steps.minimum
        step = unit * scale
        if form.minimum:
            codes = _codes(groups, step[..., None], steps.offset[..., None], form)
            middle = torch.linalg.vecdot(codes, weight.expand_as(codes))
            minimum = multiples((step * middle - mean) / total, least_unit, 0, form.most)
        error = _error(groups, weight, step, least_unit * minimum, form)
        less = error < least
        least = torch.where(less, error, least)
        best = replace(best, scale=torch.where(less, scale, best.scale), minimum=torch.where(less, minimum, best.minimum))
    return best


def _better_blocks(groups: Tensor, weight: Tensor, steps: Steps, form: Form) -> Steps:
    """Other D and E of each block where they lose less: those of least squares for the codes as they are."""
    codes, dot = codes_of(groups, steps, form), torch.linalg.vecdot
    along = codes * steps.scale[..., None]
    aside = -steps.minimum[..., None].expand_as(codes)

    def product(first: Tensor, second: Tensor) -> Tensor:
        return over_blocks(dot(first * weight, second), form).sum(2)

    pair = solve_pair(product(along, along), product(along, aside), product(aside, aside), product(along, groups), product(aside, groups))
    tried = replace(steps, **dict(zip(("block_scale", "block_minimum"), block_pair(*pair, form), strict=True)))
    errors = [over_blocks(_error(groups, weight, one.step, one.offset, form), form).sum(2) for one in (tried, steps)]
    less = errors[0] < errors[1]
    return replace(
        steps,
        block_scale=torch.where(less, tried.block_scale, steps.block_scale),
        block_minimum=torch.where(less, tried.block_minimum, steps.block_minimum),
    )
