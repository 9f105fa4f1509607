"""GPTQ: rounding column by column, each error made up for by the columns that are still free.

    min over V on the grid of  tr((W - V) G (W - V)^T),   solved by `obs` with the target `int`

Source: Frantar, Ashkboos, Hoefler and Alistarh (2022), arXiv 2210.17323. Grids are fitted to the original weights, so `act_order` costs no
storage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.core.grids import Range
from thrifty.weights.base import Activation, Preset, Treatment
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.int import Int


@dataclass(frozen=True)
class GPTQ(Preset):
    """bits: 2 to 8. group_size: inputs that share a scale, 0 for the whole row. act_order, damping, block_size: see `obs`.
    activation: what the inputs are rounded to while the model runs; none by default."""

    name: ClassVar[str] = "gptq"
    paper: ClassVar[Paper] = OBS.paper

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    group_size: Annotated[int, Field(ge=0)] = 32
    symmetric: bool = True
    range: Range = "mse"
    act_order: bool = True
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    block_size: Annotated[int, Field(ge=1)] = 128
    activation: Activation | None = None

    def expand(self) -> Treatment:
        grid = Int(self.bits, self.group_size, self.symmetric, self.range)
        return Treatment(OBS(self.act_order, self.damping, self.block_size), grid, activation=self.activation)
