"""Inputs are rounded to integers while the model runs, each token on a grid of its own.

    x_q = (clamp(round(x / s) + z) - z) s,   s and z from the smallest and largest value of the token, or of the whole call

Nothing is calibrated. Runtimes that multiply integers need 8 bits; `per: tensor` has one grid for all tokens of a call.
Source: Yao, Aminabadi, Zhang, Wu, Li and He (2022), arXiv 2206.01861.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.core.activations import Histogram, Rounding
from thrifty.weights.base import Activation


@dataclass(frozen=True)
class Dynamic(Activation):
    """bits: 2 to 8. per: what shares a grid. symmetric: whether it is centred on zero."""

    name: ClassVar[str] = "dynamic"
    paper: ClassVar[Paper] = Paper(
        "Yao et al.", 2022, "ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers", "2206.01861"
    )

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    per: Literal["token", "tensor"] = "token"
    symmetric: bool = True

    @property
    def outline(self) -> Rounding:
        return Rounding(self.bits, self.per, self.symmetric)

    def fit(self, seen: Histogram | None) -> Rounding:
        return self.outline
