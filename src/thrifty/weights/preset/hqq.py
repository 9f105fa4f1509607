"""HQQ: rounding to nearest on grids that need not meet zero, placed by half-quadratic splitting; no calibration data is read.

    min over the offsets o of  sum |w - v|^norm,   v = q s + o the nearest number,   solved by `round` into `affine`

Source: Badri and Shaji (2023), Half-Quadratic Quantization of Large Machine Learning Models. Weights are divided by the root mean square of
their group while the offset is sought, so that `beta` means the same for large and small weights. Two bits of weights most of which are
near zero, with a few far off, may be nearer with `rtn` and `symmetric: false`, where zero is one of the four values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.core.grids import Range
from thrifty.weights.base import Activation, Preset, Treatment
from thrifty.weights.solve.round import Round
from thrifty.weights.target.affine import Affine


@dataclass(frozen=True)
class HQQ(Preset):
    """bits: 2 to 8. group_size, range, norm, beta, kappa, iterations: see `affine`.
    activation: what the inputs are rounded to while the model runs; none by default."""

    name: ClassVar[str] = "hqq"
    paper: ClassVar[Paper] = Affine.paper

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    group_size: Annotated[int, Field(ge=0)] = 64
    range: Range = "minmax"
    norm: Annotated[float, Field(gt=0, le=1)] = 0.7
    beta: Annotated[float, Field(gt=0)] = 10.0
    kappa: Annotated[float, Field(ge=1)] = 1.01
    iterations: Annotated[int, Field(ge=0, le=1000)] = 20
    activation: Activation | None = None

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(group_size=32),)

    def expand(self) -> Treatment:
        grid = Affine(self.bits, self.group_size, self.range, self.norm, self.beta, self.kappa, self.iterations)
        return Treatment(Round(), grid, activation=self.activation)
