"""Zero-free grid: 2^bits evenly spaced levels on both sides of zero, which is none of them.

    value = code * scale,   code one of  -(L - 1), .., -3, -1, 1, 3, .., L - 1,   L = 2^bits
    minmax:  scale = max |w| / L                                       the largest magnitude lies half a step outside the levels
    mse:     scale = argmin over s of sum_i c_i (w_i - s t_i)^2,        t_i the nearest code

At 2 bits that is -1.5, -0.5, 0.5 and 1.5 steps: symmetric, where an integer grid of 2 bits has -2, -1, 0 and 1. `minmax` is where ParetoQ
and UPQ (arXiv 2506.09104) start their training at 2 bits; `mse` finds the best scale exactly, by sorting, and is for 1 bit their mean |w|.
It weighs errors by how much the inputs matter (c), where calibration data says so. `stretch` multiplies the scale: with 1.15 the outputs of
layers lose less, above all with `obs`. Codes are odd integers, so places of 4 bits hold them, up to 3 bits. In GGUF 2 bits with one scale a
row, or groups of 256 or a multiple of it, take 2.63 bits a weight (Q2_K). Pruned entries cannot stay zero.
Source: Liu, Zhao, Fedorov et al. (2025), arXiv 2502.02631.
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
from thrifty.core.grids import Range, grouped, snap_scale
from thrifty.core.least_squares import SCALE_BITS, least_squares_scale
from thrifty.core.trainable import Codes
from thrifty.weights.base import Points, Target, check_groups, outlined
from thrifty.weights.scaled import GroupSize, Stretch


@dataclass(frozen=True)
class ZeroFree(Target):
    """bits: 1 to 3. group_size: inputs that share a scale, 0 for the whole row. stretch: what the scale is multiplied by."""

    name: ClassVar[str] = "zero_free"
    paper: ClassVar[Paper] = Paper(
        "Liu, Zhao, Fedorov et al.", 2025, "ParetoQ: Scaling Laws in Extremely Low-bit LLM Quantization", "2502.02631"
    )
    holds_zero: ClassVar[bool] = False

    bits: Annotated[int, Field(ge=1, le=3)] = 2
    group_size: GroupSize = 0
    range: Range = "mse"
    stretch: Stretch = 1.0

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(group_size=32),)

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(2**self.bits) - 1

    @property
    def codes(self) -> Codes:
        return Codes(-self.largest, self.largest, 2, SCALE_BITS)

    def check(self, out_features: int, in_features: int, name: str) -> None:
        check_groups(self.group_size, in_features, name)

    def outline(self, out_features: int, in_features: int) -> Encoded:
        tensors = outlined(out_features, in_features, self.group_size)
        return Encoded("int", tensors, (out_features, in_features), float(self.bits), self.group_size)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> ZeroFreePoints:
        groups = grouped(values, self.group_size)
        if self.range == "minmax":
            scale = groups.abs().amax(-1) / 2**self.bits
        else:
            codes = tuple(range(1, self.largest + 1, 2))
            scale = least_squares_scale(groups, codes, None if importance is None else importance.reshape(groups.shape[1:]))
        return ZeroFreePoints(self, snap_scale(self.stretch * scale, SCALE_BITS), values.shape[1])


class ZeroFreePoints(Points):
    """Odd multiples of the scales."""

    def __init__(self, target: ZeroFree, scale: Float[Tensor, "out groups"], width: int) -> None:
        self.target, self.scale = target, scale
        self._columns = scale.T.contiguous().unbind(0)
        self._size = target.group_size or width

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        scale = self.scale[..., None]
        return (self._nearest(grouped(values, self.target.group_size) / scale) * scale).reshape(values.shape)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        scale = self._columns[index // self._size]
        torch.mul(self._nearest(column / scale), scale, out=out)

    def _nearest(self, multiples: Tensor) -> Tensor:
        """The nearest code, the higher of two."""
        return multiples.div_(2).floor_().mul_(2).add_(1).clamp_(-self.target.largest, self.target.largest)

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        codes = torch.round(grouped(values, self.target.group_size) / self.scale[..., None]).to(torch.int8).reshape(values.shape)
        shape = (values.shape[0], values.shape[1])
        tensors = {"codes": codes, "scale": self.scale.to(torch.float32)}
        return Encoded("int", tensors, shape, float(self.target.bits), self.target.group_size)
