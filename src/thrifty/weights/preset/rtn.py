"""Round to nearest: every weight on its own, no calibration data.

    v_ij = the grid point nearest to w_ij

What every other way to a grid has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.core.grids import Range
from thrifty.weights.base import Activation, Preset, Treatment
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int


@dataclass(frozen=True)
class RTN(Preset):
    """bits: 2 to 8. group_size: inputs that share a scale, 0 for the whole row. range: `mse` searches the least squared error.
    activation: what the inputs are rounded to while the model runs; none by default."""

    name: ClassVar[str] = "rtn"

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    group_size: Annotated[int, Field(ge=0)] = 32
    symmetric: bool = True
    range: Range = "minmax"
    activation: Activation | None = None

    @classmethod
    def examples(cls) -> tuple[RTN, ...]:
        return cls(), cls(symmetric=False), cls(bits=8, group_size=0)

    def expand(self) -> Treatment:
        return Treatment(Round(), Int(self.bits, self.group_size, self.symmetric, self.range), activation=self.activation)
