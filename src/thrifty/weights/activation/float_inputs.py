"""Inputs are rounded to small floats while the model runs: FP8 on a scale of its token or a fixed one, NVFP4 and MX in groups.

    x_q = nearest(clamp(x / s)) s

    fp8            s = max |x| / 448, of each token, of all tokens of a call (`tensor`), or of all calibration inputs (`fixed`)
    mxfp8, mxfp4   s a power of two for each 32 channels of a token
    nvfp4          s a float of 8 bits for each 16 channels of a token, over one number for all, which calibration fixes

For runtimes that multiply such floats; `per` is of fp8 alone. Weights go with them that are of the same kind: `float` with its
settings for FP8, MXFP8, MXFP4 or NVFP4. Our container takes any weights.
Source: Micikevicius et al. (2022), FP8 Formats for Deep Learning, arXiv 2209.05433.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch

from thrifty.base.errors import InputError, RunError
from thrifty.base.method import Paper
from thrifty.core.activations import Histogram, Rounding
from thrifty.core.float_inputs import LARGEST_E4M3, global_scale
from thrifty.core.formats import FLOATS
from thrifty.core.scaled import STANDARDS
from thrifty.weights.base import Activation


@dataclass(frozen=True)
class FloatInputs(Activation):
    """format: the small floats. per: what shares a scale, of fp8."""

    name: ClassVar[str] = "float_inputs"
    paper: ClassVar[Paper] = Paper("Micikevicius et al.", 2022, "FP8 Formats for Deep Learning", "2209.05433")

    format: Literal["fp8", "mxfp8", "mxfp4", "nvfp4"] = "fp8"
    per: Literal["token", "tensor", "fixed"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != "fp8" and self.per != "token":
            raise InputError(f"float_inputs: {self.format} has scales of groups; leave per: {self.per} out")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return cls(), cls(per="fixed"), cls("nvfp4")

    @property
    def outline(self) -> Rounding:
        fixed = (torch.ones(1), torch.zeros(1)) if self.per == "fixed" or self.format == "nvfp4" else (None, None)
        per = "group" if self.format != "fp8" else "token" if self.per == "token" else "tensor"
        return Rounding(FLOATS[STANDARDS[self.format].numbers]().bits, per, True, *fixed, standard=self.format)

    def fit(self, seen: Histogram | None) -> Rounding:
        outline = self.outline
        if outline.scale is None:
            return outline
        if seen is None:
            raise RunError(f"inputs in {self.format} with a fixed scale need calibration inputs; give some, or take fp8 per token")
        most = max(abs(seen.low), abs(seen.high))
        if self.format == "nvfp4":
            scale = torch.tensor([global_scale(most)])
        else:
            # a checkpoint may hold the scale in bfloat16
            scale = torch.tensor([max(most, 1e-30) / LARGEST_E4M3]).to(torch.bfloat16).to(torch.float32)
        return replace(outline, scale=scale)
