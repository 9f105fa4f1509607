"""Learned rounding after coordinate descent: codes and scales of a block are tuned against its output, as auto-round does it.

    V = the point of the grid that `descent` finds, then `learned_rounding` over all matrices of the block

On bare tensors, which have no block, it is `descent` alone.
Source: Cheng et al. (2023), arXiv 2309.05516.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.core.grids import Range
from thrifty.weights.base import Preset, Treatment
from thrifty.weights.heal.learned_rounding import LearnedRounding
from thrifty.weights.solve.descent import Descent
from thrifty.weights.target.int import Int


@dataclass(frozen=True)
class AutoRound(Preset):
    """bits: 2 to 8. group_size: inputs that share a scale, 0 for the whole row. iterations, batch, rate: see `learned_rounding`."""

    name: ClassVar[str] = "auto_round"
    paper: ClassVar[Paper] = LearnedRounding.paper

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    group_size: Annotated[int, Field(ge=0)] = 32
    symmetric: bool = True
    range: Range = "mse"
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 200
    batch: Annotated[int, Field(ge=1)] = 8
    rate: Annotated[float, Field(gt=0, le=1)] | None = None

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(iterations=3, batch=2, rate=0.005),)  # the steps of a long run

    def expand(self) -> Treatment:
        grid = Int(self.bits, self.group_size, self.symmetric, self.range)
        return Treatment(Descent(), grid, heal=LearnedRounding(self.iterations, self.batch, self.rate))
