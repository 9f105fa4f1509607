"""Small floats: every entry is a float of 4, 6 or 8 bits times a scale, as in FP8, FP6, FP4, MX and NVFP4.

    value = number * scale,   scale = max |w| / largest number,   rounded to what holds it:
    real:         8 significant bits (bfloat16)
    power_of_two: 2^(floor(log2 max |w|) - floor(log2 largest number)), one byte of exponent
    e4m3:         a float of 8 bits, over one power of two for the whole matrix

    float: {format: e4m3, group_size: 0}                              FP8, a scale a row
    float: {format: e4m3, group_size: 32, scale: power_of_two}        MXFP8
    float: {format: e2m3, group_size: 32, scale: power_of_two}        MXFP6, as it is with e3m2
    float: {format: e2m1, group_size: 32, scale: power_of_two}        MXFP4
    float: {format: e2m1, group_size: 16, scale: e4m3}                NVFP4

These but MXFP6 of e3m2 are stored as codes, in the formats that compressed-tensors has for them; other settings are stored dense, or as
codes with `--format thrifty`.
Numbers beyond the largest are clipped to it. `range: mse` looks for the scale with the least squared error (weighed by the inputs where
calibration data says how): 1, 0.95 .. 0.5 of it, and of powers of two that one, its double and its half. Format: Rouhani et al. (2023),
Microscaling Data Formats for Deep Learning, arXiv 2310.10537.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from jaxtyping import Float
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.formats import FLOATS, Format
from thrifty.core.grids import Range
from thrifty.core.scaled import STANDARDS, ScaleRule, Scales, Standard, fit_scales
from thrifty.weights.scaled import GroupSize, Scaled


@dataclass(frozen=True)
class SmallFloat(Scaled):
    """format: exponent and mantissa bits. group_size: inputs that share a scale, 0 for the whole row. scale: what scales may be."""

    name: ClassVar[str] = "float"
    paper: ClassVar[Paper] = Paper("Rouhani et al.", 2023, "Microscaling Data Formats for Deep Learning", "2310.10537")

    format: Literal["e2m1", "e2m3", "e3m2", "e4m3", "e5m2"] = "e2m1"
    group_size: GroupSize = 32
    scale: ScaleRule = "real"
    range: Range = "minmax"

    @property
    def form(self) -> Format:
        return FLOATS[self.format]()

    @property
    def standard(self) -> str:
        meant = Standard(self.format, self.group_size, self.scale)
        return next((name for name, standard in STANDARDS.items() if standard == meant), "")

    @property
    def scale_rule(self) -> ScaleRule:
        return self.scale

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), *(cls(standard.numbers, standard.group_size, standard.scale) for standard in STANDARDS.values()))

    def scales(self, groups: Float[Tensor, "out groups size"], importance: Float[Tensor, "groups size"] | None) -> Scales:
        return fit_scales(groups, self.form, self.scale, self.range, importance)
