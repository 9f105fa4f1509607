"""Rates of their own for matrices that are trained together, by how heavy-tailed their spectra are.

    f_l = least + (alpha_l - min alpha) / (max alpha - min alpha) (most - least),     rate of matrix l at step t = f_l r_t

The smaller alpha, the heavier the tail, and the better trained the matrix is held to be: it moves less. Where all alphas are the same, and
for a matrix that has none, f_l is 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Method
from thrifty.core.shares import spread
from thrifty.core.spectra import Rule


@dataclass(frozen=True)
class LayerRates(Method, ABC):
    """What gives every matrix a rate of its own. every: steps after which alphas are measured anew. least, most: of the rate, for the
    smallest and the largest alpha. rule: where a tail starts (`median`, `peak`, `goodness`)."""

    family: ClassVar[str] = "tune.rates"

    every: Annotated[int, Field(ge=1)] = 50
    least: Annotated[float, Field(gt=0, le=1)] = 0.5
    most: Annotated[float, Field(ge=1, le=10)] = 1.5
    rule: Rule = "median"

    @abstractmethod
    def alpha(self, weight: Float[Tensor, "out in *kernel"]) -> float:
        """Of a matrix, or of the kernel of a convolution; infinite or NaN where there is no tail to speak of."""

    def factors(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """What the rate of each matrix is multiplied by, by its name."""
        return dict(zip(alphas, spread([*alphas.values()], self.least, self.most), strict=True))

    @abstractmethod
    def cost(self, out_features: int, in_features: int) -> tuple[float, int]:
        """(multiplications, bytes held beside it) of `alpha` for one matrix, about."""
