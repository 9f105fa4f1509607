"""Ternary: every entry is -1, 0 or 1 times the scale of its row or group, 1.58 bits of information each.

    absmean:  scale = mean |w|                                    what is smaller than half of it becomes zero
    mse:      scale = argmin over s of sum_i c_i (w_i - s t_i)^2,  t_i the nearest of -1, 0 and 1

`absmean` is the rule of BitNet b1.58, made for training; it ignores how much the inputs matter (c). `mse` finds the best scale exactly, by
sorting: at the optimum it is the mean of the magnitudes that stay. A matrix that is ternary already comes out as it was, which `absmean`
makes smaller. `stretch` multiplies the scale: the least squared error leaves weights too small on the whole, and with 1.2 the outputs of
layers lose less, above all with `obs`. Scales have 8 significant bits, between 2^-16 and 2^12, as those of `int`. In GGUF one scale a row,
or groups of 256 or a multiple of it, take 1.69 bits a weight (TQ1_0); other groups take as much as 4 bits do.
Source: Ma, Wang, Ma et al. (2024), arXiv 2402.17764.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from jaxtyping import Float
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.base.records import Encoded
from thrifty.core.grids import Step, grouped, snap_scale
from thrifty.core.least_squares import SCALE_BITS, least_squares_scale
from thrifty.core.trainable import Codes
from thrifty.weights.base import Target
from thrifty.weights.scaled import GroupSize, Stretch
from thrifty.weights.target.int import Int, IntPoints


@dataclass(frozen=True)
class Ternary(Target):
    """group_size: inputs that share a scale, 0 for the whole row. range: how the scale is found. stretch: what it is multiplied by."""

    name: ClassVar[str] = "ternary"
    paper: ClassVar[Paper] = Paper(
        "Ma, Wang, Ma et al.", 2024, "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits", "2402.17764"
    )

    group_size: GroupSize = 0
    range: Literal["absmean", "mse"] = "mse"
    stretch: Stretch = 1.0

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(group_size=32),)

    @property
    def grid(self) -> Int:
        """The integer grid that its points are."""
        return Int(levels=3, group_size=self.group_size)

    @property
    def codes(self) -> Codes:
        return replace(self.grid.codes, scale_bits=SCALE_BITS)

    def check(self, out_features: int, in_features: int, name: str) -> None:
        self.grid.check(out_features, in_features, name)

    def outline(self, out_features: int, in_features: int) -> Encoded:
        return self.grid.outline(out_features, in_features)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> IntPoints:
        groups = grouped(values, self.group_size)
        if self.range == "absmean":
            scale = groups.abs().mean(-1)
        else:
            scale = least_squares_scale(groups, (0, 1), None if importance is None else importance.reshape(groups.shape[1:]))
        scale = snap_scale(self.stretch * scale, SCALE_BITS)
        return IntPoints(self.grid, Step(scale, None), values.shape[1])
