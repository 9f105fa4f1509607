"""Evenly spaced numbers that need not meet zero, and where they lie best: half-quadratic splitting.

    value = code * scale + offset,   codes -(L // 2) .. (L - 1) // 2

Of a group of weights w_i the scale comes from its range. The offset makes sum_i c_i |w_i - v_i|^p small, p below 1, by turns:

    v_i = q_i scale + offset,  q_i the nearest code,      e_i = shrink(w_i - v_i),  shrink(u) = sign(u) max(|u| - |u|^(p-1) / beta, 0)
    offset <- mean_c(w_i - e_i - q_i scale),              beta <- kappa beta

so that the few weights that are far from every number pull less than those near one. The best offset on the way stays. Weights are divided
by the root mean square of their group meanwhile: twice the weights have twice the scale and offset.
Source: Badri and Shaji (2023), Half-Quadratic Quantization of Large Machine Learning Models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.grids import CHUNK, SHRINKS, Range, code_limits, snap_scale

SCALE_BITS = 8
"""Significant bits of a scale, and of an offset: bfloat16 holds both."""

FIRST_TURNS = 3
"""Turns that each part of a range gets before one is chosen, which then gets all: within 0.5 % of what all turns for each find."""

TINY = 1e-30
"""Sums below this count as this much, so that groups of zeros divide."""

FARTHEST = 48
"""Steps between zero and the middle of a group, at most: groups farther off get wider steps."""


@dataclass(frozen=True)
class Splitting:
    """norm: p. strength: the first beta. growth: kappa. iterations: turns, 0 for the middle of the range."""

    norm: float = 0.7
    strength: float = 10.0
    growth: float = 1.01
    iterations: int = 20


@dataclass(frozen=True)
class Line:
    """Scale and offset of each group, [out, groups]."""

    scale: Float[Tensor, "out groups"]
    offset: Float[Tensor, "out groups"]

    def codes(self, groups: Float[Tensor, "out groups size"], levels: int) -> Float[Tensor, "out groups size"]:
        """The code of the nearest number."""
        exact = (groups - self.offset[..., None]).div_(self.scale[..., None])
        return exact.round_().clamp_(*code_limits(levels))

    def values(self, codes: Float[Tensor, "out groups size"]) -> Float[Tensor, "out groups size"]:
        """What codes stand for; exact in float32. Zeros are positive."""
        return (codes * self.scale[..., None]).add_(self.offset[..., None]).add_(0.0)


def snap_offset(offset: Float[Tensor, "*shape"], scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The nearest offset that every container holds beside its scale: a multiple of 1/16 to 1/32 of the scale, of 8 significant bits.

    So bfloat16 holds it, and float16 holds the value of the lowest of up to 16 codes, which is what blocks of GGUF are made of.
    scale: of 8 significant bits, as `snap_scale` gives it.
    """
    power = torch.frexp(scale).exponent
    multiple = torch.round(torch.ldexp(offset, 5 - power)).clamp_(-1792, 1792)  # less 8 steps these are 11 bits
    return torch.ldexp(multiple.to(torch.bfloat16).to(offset.dtype), power - 5).add_(0.0)


def fit_line(
    groups: Float[Tensor, "out groups size"],
    levels: int,
    range_rule: Range,
    splitting: Splitting,
    importance: Float[Tensor, "groups size"] | None = None,
) -> Line:
    """Scale and offset of each group, as containers hold them.

    range_rule: `minmax` spans all weights and keeps the offset with the least sum of |w - v|; `mse` also tries parts of that span and
    keeps what has the least sum of squares. importance: weight of each error (None: all equal).
    """
    rows = max(1, CHUNK // groups[0].numel())
    found = [_fit(part, levels, range_rule, splitting, importance) for part in groups.split(rows)]
    return Line(torch.cat([line.scale for line in found]), torch.cat([line.offset for line in found]))


def _fit(groups: Tensor, levels: int, range_rule: Range, splitting: Splitting, importance: Tensor | None) -> Line:
    """`fit_line` for groups that are looked at together."""
    low, high = groups.amin(-1), groups.amax(-1)
    middle, span = (low + high) / 2, high - low
    weight = torch.ones_like(groups[0]) if importance is None else importance
    search = _Search(groups, levels, 1 if range_rule == "minmax" else 2, weight / weight.sum(-1, keepdim=True).clamp_min(TINY))

    def look(part: float, splitting: Splitting) -> None:
        scale = snap_scale(torch.maximum(span * (part / (levels - 1)), middle.abs() / FARTHEST), SCALE_BITS)
        search.split(scale, middle + torch.where(span > 0, scale / 2, 0.0), splitting)

    if range_rule == "minmax":
        look(1.0, splitting)
        return search.best
    for part in SHRINKS:
        look(part, replace(splitting, iterations=min(FIRST_TURNS, splitting.iterations)))
    search.split(search.best.scale, search.best.offset, splitting)
    return search.best


class _Search:
    """The best scale and offset of each group so far. weight: of each error, 1 in sum. power: of the errors that are summed up."""

    def __init__(self, groups: Tensor, levels: int, power: int, weight: Float[Tensor, "groups size"]) -> None:
        self.groups, self.levels, self.power, self.weight = groups, levels, power, weight
        self.size = groups.square().mean(-1, keepdim=True).sqrt_().clamp_min_(TINY)
        self.least = torch.full_like(groups[..., 0], torch.inf)
        self.best = Line(torch.ones_like(self.least), torch.zeros_like(self.least))

    def split(self, scale: Float[Tensor, "out groups"], offset: Float[Tensor, "out groups"], splitting: Splitting) -> None:
        """Move the offset by turns, and consider where it begins and its best place, as containers hold them."""
        self._consider(scale, offset)
        best, least, strength = offset, torch.full_like(offset, torch.inf), splitting.strength
        for _ in range(splitting.iterations):
            error, total = self._errors(Line(scale, offset))
            best, least = torch.where(total < least, offset, best), torch.minimum(total, least)
            offset = offset + self._mean(error.sub_(self._shrunk(error, splitting.norm, strength)))
            strength *= splitting.growth
        self._consider(scale, best)
        self._consider(scale, offset)

    def _consider(self, scale: Tensor, offset: Tensor) -> None:
        """Keep a scale and an offset where they are the best so far."""
        offset = snap_offset(offset, scale)
        total = self._errors(Line(scale, offset))[1]
        less = total < self.least
        self.least = torch.where(less, total, self.least)
        self.best = Line(torch.where(less, scale, self.best.scale), torch.where(less, offset, self.best.offset))

    def _errors(self, line: Line) -> tuple[Float[Tensor, "out groups size"], Float[Tensor, "out groups"]]:
        """(w - v, what is summed up of it)."""
        error = self.groups - line.values(line.codes(self.groups, self.levels))
        return error, self._mean(error.abs() if self.power == 1 else error.square())

    def _shrunk(self, error: Tensor, norm: float, strength: float) -> Tensor | float:
        """What of an error counts as an outlier's and moves nothing."""
        size = error.abs().div_(self.size)
        # below this size nothing is left of an error
        if float(size.max()) <= strength ** (-1 / (2 - norm)):
            return 0.0
        rest = size - size.clamp_min(TINY).pow_(norm - 1).div_(strength)
        return rest.clamp_min_(0).mul_(self.size).mul_(error.sign())

    def _mean(self, values: Tensor) -> Float[Tensor, "out groups"]:
        return torch.linalg.vecdot(values, self.weight)
