"""Affine grid: evenly spaced numbers that need not meet zero, each group with a scale and a lowest number of its own.

    value = code * scale + offset,   codes -(L // 2) .. (L - 1) // 2,  L = 2^bits

An integer grid with zero points is the case in which offset / scale is a whole number, so that zero is one of its values; here groups whose
weights lie elsewhere lose no codes to that. The offset is found by half-quadratic splitting, which makes the sum of |w - v|^norm small
(`iterations: 0` takes the middle of the range), and is held to 1/16 of a step or finer, so that bfloat16 holds it, and float16 the lowest
value: in GGUF up to 4 bits take Q4_1, or Q2_K where there are 4 levels in groups of 256 or multiples of it. `range: mse` also tries parts
of the range, and keeps what has the least squared error. `--format thrifty` stores the codes; pruned entries cannot stay zero.
Source: Badri and Shaji (2023), Half-Quadratic Quantization of Large Machine Learning Models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.base.records import Encoded
from thrifty.core.affine_grids import Line, Splitting, fit_line
from thrifty.core.affine_refit import refit_line
from thrifty.core.grids import Range, code_limits, grouped
from thrifty.weights.base import Points, Target, check_groups, outlined


@dataclass(frozen=True)
class Affine(Target):
    """bits: 2 to 8. group_size: inputs that share a scale and an offset, 0 for the whole row.

    norm, beta, kappa, iterations: of the splitting; weights count as multiples of the root mean square of their group.
    """

    name: ClassVar[str] = "affine"
    paper: ClassVar[Paper] = Paper("Badri, Shaji", 2023, "Half-Quadratic Quantization of Large Machine Learning Models")
    holds_zero: ClassVar[bool] = False

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    group_size: Annotated[int, Field(ge=0)] = 64
    range: Range = "minmax"
    norm: Annotated[float, Field(gt=0, le=1)] = 0.7
    beta: Annotated[float, Field(gt=0)] = 10.0
    kappa: Annotated[float, Field(ge=1)] = 1.01
    iterations: Annotated[int, Field(ge=0, le=1000)] = 20

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(group_size=32),)

    @property
    def levels(self) -> int:
        """Points of the grid."""
        return int(2**self.bits)

    def check(self, out_features: int, in_features: int, name: str) -> None:
        check_groups(self.group_size, in_features, name)

    def outline(self, out_features: int, in_features: int) -> Encoded:
        tensors = outlined(out_features, in_features, self.group_size)
        tensors["offset"] = torch.empty_like(tensors["scale"])
        return self._encoded(tensors, (out_features, in_features))

    def _encoded(self, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Encoded:
        return Encoded("affine", tensors, shape, float(self.bits), self.group_size, simulated=True)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> AffinePoints:
        groups = grouped(values, self.group_size)
        weights = None if importance is None else importance.reshape(groups.shape[1:]).to(values.dtype)
        splitting = Splitting(self.norm, self.beta, self.kappa, self.iterations)
        return AffinePoints(self, fit_line(groups, self.levels, self.range, splitting, weights), values.shape[1])

    def encode(self, codes: Tensor, line: Line) -> Encoded:
        """How codes [out, in] are held."""
        tensors = {"codes": codes.to(torch.int8), "scale": line.scale.to(torch.float32), "offset": line.offset.to(torch.float32)}
        return self._encoded(tensors, (codes.shape[0], codes.shape[1]))


class AffinePoints(Points):
    """Codes with the scales and offsets of their groups."""

    def __init__(self, target: Affine, line: Line, width: int) -> None:
        self.target, self.line = target, line
        self._scales, self._offsets = (part.T.contiguous().unbind(0) for part in (line.scale, line.offset))
        self._limits = code_limits(target.levels)
        self._size = target.group_size or width

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return self.line.values(self._codes(values)).reshape(values.shape)

    def _codes(self, values: Tensor) -> Float[Tensor, "out groups size"]:
        return self.line.codes(grouped(values, self.target.group_size), self.target.levels)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        scale, offset = self._scales[index // self._size], self._offsets[index // self._size]
        torch.sub(column, offset, out=out)
        out.div_(scale).round_().clamp_(*self._limits).mul_(scale).add_(offset)

    def refit(
        self, values: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
    ) -> tuple[AffinePoints, Float[Tensor, "out in"]]:
        line, values = refit_line(weight, values, gram, self.line)
        return AffinePoints(self.target, line, values.shape[1]), values

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        return self.target.encode(self._codes(values).reshape(values.shape), self.line)
