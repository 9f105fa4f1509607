"""Inputs are rounded to integers while the model runs, all on one grid that calibration has fixed, or each channel on its own.

    x_q = (clamp(round(x / s) + z) - z) s,   s and z from a range low..high of the calibration inputs:

    min_max      their smallest and largest value
    percentile   without a share of 1 - percentile / 100 at each end
    mse          the share of the whole range whose grid has the least squared error

What lies outside the range is cut off. Nothing is computed for it at run time, and no token can be helped by a grid of its own.
`per: channel` fixes a range for every channel. No runtime multiplies such integers, whose scales lie inside the sum, and no file holds
them: the run rounds inputs so and judges it, and the result is stored dense and marked `simulated`.
Source: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam and Kalenichenko (2017), arXiv 1712.05877.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from thrifty.base.errors import RunError
from thrifty.base.method import Paper
from thrifty.core.activations import Histogram, Rounding, Rule, fitted, fixed_range
from thrifty.core.channels import ChannelHistogram, channel_ranges
from thrifty.weights.base import Activation


@dataclass(frozen=True)
class Static(Activation):
    """bits: 2 to 8. rule: how the range is chosen; percentile: for the rule of that name. symmetric: whether it is centred on zero.
    per: what shares a grid."""

    name: ClassVar[str] = "static"
    paper: ClassVar[Paper] = Paper(
        "Jacob et al.",
        2017,
        "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        "1712.05877",
    )
    bits: Annotated[int, Field(ge=2, le=8)] = 8
    rule: Rule = "mse"
    percentile: Annotated[float, Field(gt=50, lt=100)] = 99.99
    symmetric: bool = False
    per: Literal["tensor", "channel"] = "tensor"

    @classmethod
    def examples(cls) -> tuple[Static, ...]:
        return cls(), cls(rule="percentile", symmetric=True)

    @property
    def outline(self) -> Rounding:
        return Rounding(self.bits, self.per, self.symmetric, torch.ones(1), torch.zeros(1))

    def fit(self, seen: Histogram | ChannelHistogram | None) -> Rounding:
        if seen is None:
            raise RunError("static activations need calibration inputs; give some, or take `dynamic`")
        rule = (self.rule, self.bits, self.symmetric, self.percentile)
        if isinstance(seen, ChannelHistogram):
            low, high = channel_ranges(seen, *rule)
        else:
            low, high = (torch.tensor([end]) for end in fixed_range(seen, *rule))
        scale, zero_point = fitted(low, high, self.bits, self.symmetric)
        # a checkpoint may hold the scale in bfloat16
        return replace(self.outline, scale=scale.to(torch.bfloat16).to(torch.float32), zero_point=zero_point)
