"""Posits: numbers of some bits that lie densest near 1 and thin out to both sides, times a power of two.

    value = (2^(2^es))^regime * 2^exponent * (1 + fraction) * scale,   scale = 2^round(log2 rms of the group)

The scale brings the usual weight to where posits are densest. What is not zero never becomes zero: the smallest posit is its nearest.
`es` spreads them: with 8 bits they reach from 2^-6 to 2^6 times the scale for es 0, from 2^-24 to 2^24 for es 2 (the 2022 standard).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.core.formats import Format, posit_format
from thrifty.core.scaled import ScaleRule, Scales, floor_power
from thrifty.weights.scaled import GroupSize, Scaled


@dataclass(frozen=True)
class Posit(Scaled):
    """bits: 4 to 16. es: bits of the exponent, 0 to 3. group_size: inputs that share a scale, 0 for the whole row."""

    name: ClassVar[str] = "posit"

    bits: Annotated[int, Field(ge=4, le=16)] = 8
    es: Annotated[int, Field(ge=0, le=3)] = 1
    group_size: GroupSize = 0

    @property
    def form(self) -> Format:
        return posit_format(self.bits, self.es)

    @property
    def rule(self) -> ScaleRule:
        return "power_of_two"

    def scales(self, groups: Float[Tensor, "out groups size"], importance: Float[Tensor, "groups size"] | None) -> Scales:
        usual = groups.square().mean(-1).sqrt()
        return Scales(floor_power(usual * torch.tensor(2.0, dtype=usual.dtype).sqrt()))
