"""Layers whose spectra are less heavy-tailed learn faster (TempBalance).

    f_l = least + (alpha_l - min alpha) / (max alpha - min alpha) (most - least),     rate of matrix l at step t = f_l r_t
    alpha_l = Hill's estimate from the eigenvalues of W_l^T W_l; of a convolution, from those of the matrices of all places together

A large alpha means that little was learnt yet. Whole matrices are looked at, so that their shape counts, too; `farms_rates` mends that.
Source: Zhou, Pang, Liu, Martin, Mahoney and Yang (2023), arXiv 2312.00359.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.spectra import eigenvalues, hill, slices, whole_cost
from thrifty.tune.rates import LayerRates


@dataclass(frozen=True)
class TempBalance(LayerRates):
    """every: steps after which alphas are measured anew. least, most: of the rate, for the smallest and the largest alpha. rule: where a
    tail starts."""

    name: ClassVar[str] = "temp_balance"
    paper: ClassVar[Paper] = Paper(
        "Zhou, Pang, Liu, Martin, Mahoney, Yang",
        2023,
        "Temperature Balancing, Layer-wise Weight Analysis, and Neural Network Training",
        "2312.00359",
    )

    least: Annotated[float, Field(gt=0, le=1)] = 0.6
    most: Annotated[float, Field(ge=1, le=10)] = 1.4

    def alpha(self, weight: Float[Tensor, "out in *kernel"]) -> float:
        return hill(eigenvalues(slices(weight)).flatten(), self.rule)

    def cost(self, out_features: int, in_features: int) -> tuple[float, int]:
        return whole_cost(out_features, in_features)
