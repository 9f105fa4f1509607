"""Layers whose spectra are less heavy-tailed learn faster, their tails measured on windows of one shape (FARMS).

    f_l = least + (alpha_l - min alpha) / (max alpha - min alpha) (most - least),     rate of matrix l at step t = f_l r_t
    alpha_l = Hill's estimate from the eigenvalues of all windows of W_l together

The windows are those of `farms`: squares (`ratio` 1) of the smaller side of a matrix, `side` at most, on a grid of `positions` by
`positions`, so that the shape of a matrix does not decide its rate, as it does for `temp_balance`. The kernel of a convolution is cut into
blocks along its longer side; each block has an alpha, from the eigenvalues of its matrices of all places together, and their mean counts.
Source: Hu, Goel, Killiakov and Yang (2025), arXiv 2506.06280.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.spectra import farms, farms_kernel, windows_cost
from thrifty.tune.rates import LayerRates


@dataclass(frozen=True)
class FarmsRates(LayerRates):
    """every: steps after which alphas are measured anew. least, most: of the rate, for the smallest and the largest alpha. rule: where a
    tail starts. side: rows of a window at most. ratio: of its columns to its rows. positions: windows along either side at most."""

    name: ClassVar[str] = "farms_rates"
    paper: ClassVar[Paper] = Paper(
        "Hu, Goel, Killiakov, Yang",
        2025,
        "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias",
        "2506.06280",
    )

    least: Annotated[float, Field(gt=0, le=1)] = 0.1
    most: Annotated[float, Field(ge=1, le=10)] = 1.9
    side: Annotated[int, Field(ge=2)] = 100
    ratio: Annotated[float, Field(gt=0, le=64)] = 1.0
    positions: Annotated[int, Field(ge=1, le=100)] = 9

    def alpha(self, weight: Float[Tensor, "out in *kernel"]) -> float:
        if weight.ndim > 2:
            return farms_kernel(weight, self.ratio, self.rule)
        return farms(weight, self.side, self.ratio, self.positions, self.rule)

    def cost(self, out_features: int, in_features: int) -> tuple[float, int]:
        return windows_cost(out_features, in_features, self.side, self.ratio, self.positions)
