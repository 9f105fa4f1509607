"""Scales and zero points fitted to what a matrix does, with the codes of its entries left as they are.

    min over the scales s and zero points z of  tr((W - V) G (W - V)^T),    v_ij = (c_ij - z_ig) s_ig,   input j in group g

For one group, the others as they are, the loss is a quadratic in s with its least value at

    s* = q^T (C v + r) / (q^T C q),    q = c - z,   v = q s,   C = G of the group's inputs,   r = (W - V) G of the group's inputs

so of the scales that a container holds the one nearest to s* is the best. It is tried with z, z - 1 and z + 1; the best of these takes the
place of what was there if it costs less. Groups follow each other, and no step raises the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.grids import Step, code_limits
from thrifty.core.plane import Plane

SnapScale = Callable[[Tensor], Tensor]
"""The nearest scale of the same sign that a container holds, for each of some numbers."""


def refit_step(
    weight: Float[Tensor, "out in"],
    values: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    step: Step,
    snap_scale: SnapScale,
    levels: int = 0,
) -> tuple[Step, Float[Tensor, "out in"]]:
    """(the new scales and zero points, the values that the codes of `values` have with them). levels: points of a grid with zero points.

    Entries that are zero stay zero: where a zero point moves, their codes move with it. So masks are kept.
    """
    values, scale = values.clone(), step.scale.clone()
    zero_point = None if step.zero_point is None else step.zero_point.clone()
    size = values.shape[1] // scale.shape[1]
    for group in range(scale.shape[1]):
        columns = slice(group * size, (group + 1) * size)
        part = _Group.of(weight, values, gram, columns, scale[:, group])
        found = part.kept()
        if zero_point is None:
            found = part.better(found, 0, snap_scale(part.least(0)))
        else:
            smallest, largest = code_limits(levels)
            for shift in (0, -1, 1):
                moved = zero_point[:, group] + shift
                inside = (moved >= smallest) & (moved <= largest)
                found = part.better(found, shift, snap_scale(part.least(shift)), inside)
            zero_point[:, group] += found.shift
        scale[:, group] = found.scale
        values[:, columns] = ((part.multiple - found.shift[:, None] * part.other) * found.scale[:, None]).add_(0.0)
    return Step(scale, zero_point), values


@dataclass(frozen=True)
class _Choice:
    """Of each row: a scale, what the zero point moves by, and what that adds to the loss."""

    scale: Float[Tensor, "out"]
    shift: Float[Tensor, "out"]
    added: Float[Tensor, "out"]


@dataclass(frozen=True)
class _Group:
    """One group of inputs: multiples q of the scale, which entries are other than zero (e), and the loss over these two directions."""

    scale: Float[Tensor, "out"]
    multiple: Float[Tensor, "out n"]
    other: Float[Tensor, "out n"]
    plane: Plane

    @classmethod
    def of(cls, weight: Tensor, values: Tensor, gram: Tensor, columns: slice, scale: Float[Tensor, "out"]) -> _Group:
        multiple = values[:, columns] / scale[:, None]
        other = (multiple != 0).to(values.dtype)
        return cls(scale, multiple, other, Plane.of(weight, values, gram, columns, multiple, other))

    def kept(self) -> _Choice:
        nothing = torch.zeros_like(self.scale)
        return _Choice(self.scale.clone(), nothing, nothing)

    def least(self, shift: int) -> Float[Tensor, "out"]:
        """The scale with the least loss for the multiples q - shift e; 0 where there is none of the sign that it has."""
        at = self.plane
        curvature = at.first - 2 * shift * at.mixed + shift**2 * at.second
        pull = self.scale * (at.first - shift * at.mixed) + at.pull_first - shift * at.pull_second
        return torch.where((curvature > 0) & (pull * self.scale > 0), pull / curvature, 0.0)

    def better(self, found: _Choice, shift: int, scale: Tensor, allowed: Tensor | None = None) -> _Choice:
        """The better of what was found and another choice; what changes the values is (scale - self.scale) q - scale shift e."""
        added = self.plane.added(scale - self.scale, -shift * scale)
        less = added < found.added
        if allowed is not None:
            less &= allowed
        return _Choice(
            torch.where(less, scale, found.scale),
            torch.where(less, float(shift), found.shift),
            torch.where(less, added, found.added),
        )
