"""Integer grid: every entry is (code - zero_point) * scale with one scale a row or a group of inputs.

    symmetric:  scale = max |w| / ((L - 1) / 2),       codes -(L // 2) .. (L - 1) // 2,  L = 2^bits or `levels`
    asymmetric: scale = (max(w, 0) - min(w, 0)) / (L - 1),  zero_point = round(smallest - min(w, 0) / scale)

Scales are rounded to 8 significant bits (7 for asymmetric grids of up to 16 levels) before anything is solved, so that bfloat16 holds them,
and float16 the values of up to 16 levels, exactly; they lie between 2^-16 and 2^12, so weights far below or above are lost. `range: mse`
takes the part of the range with the least squared error (weighed by the inputs where calibration data says how) instead of all of it:
1, 0.95 .. 0.5 of it are tried. A symmetric grid of an even count has one code more below zero than above, so `mse` tries every scale with
both signs: below zero, the far code is on the other side. At 2 bits that spares the model inside the package a quarter of its divergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.grids import Cells, Range, Step, column_snap, fit_step, grouped, round_to, significant_bits, snap_scale
from thrifty.core.refit import refit_step
from thrifty.core.trainable import Codes
from thrifty.weights.base import Points, Target, check_groups, outlined


@dataclass(frozen=True)
class Int(Target):
    """bits: 2 to 8; `levels` in its place gives a count that is no power of two. group_size: inputs that share a scale, 0 for the whole
    row."""

    name: ClassVar[str] = "int"

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    group_size: Annotated[int, Field(ge=0)] = 32
    symmetric: bool = True
    range: Range = "minmax"
    levels: Annotated[int, Field(ge=2, le=256)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symmetric and self.level_count < 3:
            raise InputError("int: levels is wrong, a symmetric grid needs at least 3 (-1, 0, 1); use symmetric: false for 2")

    @property
    def level_count(self) -> int:
        """Points of the grid."""
        return self.levels or 2**self.bits

    @property
    def codes(self) -> Codes:
        return Codes.of_integers(self.level_count, self.symmetric)

    def check(self, out_features: int, in_features: int, name: str) -> None:
        check_groups(self.group_size, in_features, name)

    def outline(self, out_features: int, in_features: int) -> Encoded:
        tensors = outlined(out_features, in_features, self.group_size)
        if not self.symmetric:
            tensors["zero_point"] = torch.empty_like(tensors["scale"])
        return Encoded("int", tensors, (out_features, in_features), math.log2(self.level_count), self.group_size)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> IntPoints:
        groups = grouped(values, self.group_size)
        weights = None if importance is None else importance.reshape(groups.shape[1:]).to(values.dtype)
        return IntPoints(self, fit_step(groups, self.level_count, self.symmetric, self.range, weights), values.shape[1])


class IntPoints(Points):
    """Integer grids with their scales."""

    def __init__(self, target: Int, step: Step, width: int) -> None:
        self.target = target
        self.step = step
        self._cells = Cells.of(step, target.level_count, target.group_size, width)
        self._snap = column_snap(self._cells)

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        groups = grouped(values, self.target.group_size)
        return round_to(groups, self.step, self.target.level_count).reshape(values.shape)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        self._snap(column, index, out)

    def cells(self) -> Cells:
        return self._cells

    def refit(
        self, values: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
    ) -> tuple[IntPoints, Float[Tensor, "out in"]]:
        levels, symmetric = self.target.level_count, self.target.symmetric
        bits = significant_bits(levels, symmetric)
        step, values = refit_step(weight, values, gram, self.step, lambda scale: snap_scale(scale, bits), levels)
        return IntPoints(self.target, step, values.shape[1]), values

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        multiple = torch.round(grouped(values, self.target.group_size) / self.step.scale[..., None])
        tensors = {"scale": self.step.scale.to(torch.float32)}
        if self.step.zero_point is not None:
            multiple += self.step.zero_point[..., None]
            tensors["zero_point"] = self.step.zero_point.to(torch.int8)
        tensors["codes"] = multiple.to(torch.int8).reshape(values.shape)
        shape = (values.shape[0], values.shape[1])
        return Encoded("int", tensors, shape, math.log2(self.target.level_count), self.target.group_size)
