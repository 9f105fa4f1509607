"""Bits for the inputs of a matrix in closed form, so that rounding each of them costs the same (BAQ).

    first pass:   every input gets R bits; L_j is what rounding input j adds to the loss
    second pass:  b_j = R + (1 / theta) log2(L_j / GM(L)),   levels_j = round(max(1, 2^b_j)),   GM the geometric mean

It minimizes sum_j C_j 4^(-b_j) at a mean of R bits for theta = 2; the published theta is 1.95. An input with one level becomes zero. Where
that clamps bits at 0, R is lowered for the rest until the mean is what was asked for, which is the minimum among bits that are not negative
(the published code goes beyond the budget there). The grid of a row spans the original row's range with levels_j points. No public
container holds columns of different widths: the result is stored dense and marked `simulated`, with its rate counted both as mean
log2(levels) and as the mean of whole bits, unless `--format thrifty` stores it at the former.
Source: Zhang, Wang, Lasaulce and Debbah (2025), arXiv 2506.05664.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.base.records import Encoded, Problem
from thrifty.weights.base import Allocator, Held, Points, Solver, Target, hold
from thrifty.weights.target.int import Int as IntGrid

MOST_LEVELS = 32_767
SMALLEST_LOSS = 1e-8


@dataclass(frozen=True)
class BAQ(Allocator):
    """theta: how fast the loss of an input falls with its bits, 2^(-theta b)."""

    name: ClassVar[str] = "baq"
    paper: ClassVar[Paper] = Paper(
        "Zhang, Wang, Lasaulce, Debbah", 2025, "BAQ: Efficient Bit Allocation Quantization for Large Language Models", "2506.05664"
    )
    within_matrix: ClassVar[bool] = True
    calibrated: ClassVar[bool] = True

    theta: Annotated[float, Field(gt=0, le=4)] = 1.95

    def accepts(self, target: Target) -> None:
        grid = target.target if isinstance(target, Held) else target
        if not isinstance(grid, IntGrid) or grid.group_size or grid.symmetric or grid.range != "minmax":
            raise InputError(
                "baq shares out the bits of an asymmetric grid over the whole range of rows: "
                "into: {int: {group_size: 0, symmetric: false, range: minmax}}"
            )

    def allocate(self, problem: Problem, solver: Solver, target: Target) -> Target:
        grid = target.target if isinstance(target, Held) else target
        if not isinstance(grid, IntGrid):
            raise InputError(f"baq cannot share out the budget of {grid.name}")
        losses = solver.solve(problem, target).column_loss
        if losses is None:
            raise InputError(f"baq needs a solver that walks through the inputs one by one, as obs does; {solver.name} does not")
        bits = allocate_bits(losses, torch.log2(torch.tensor(float(grid.level_count))).item(), self.theta)
        columns = ColumnGrid(torch.round(torch.exp2(bits).clamp(1, MOST_LEVELS)).to(torch.int16))
        return hold(columns, target.mask) if isinstance(target, Held) else columns


def allocate_bits(losses: Float[Tensor, "in"], mean_bits: float, theta: float) -> Float[Tensor, "in"]:
    """R + log2(L_j / GM(L)) / theta, GM over the inputs that get more than 0 bits: the mean is R exactly, equal losses give R to all,
    theta = 2 gives 2 bits more to 16 times the loss."""
    if not bool((losses > 0).any()):
        return torch.full(losses.shape, mean_bits, dtype=torch.float64, device=losses.device)
    wanted = torch.log2(losses.to(torch.float64) + SMALLEST_LOSS * float(losses.mean())) / theta
    falling = wanted.sort(descending=True).values
    # the offset that brings the mean to R when so many of the largest share the bits; the right number is the most of them that get any
    offsets = (mean_bits * len(wanted) - falling.cumsum(0)) / torch.arange(1, len(wanted) + 1, device=wanted.device)
    sharing = int((falling + offsets > 0).nonzero().max())
    return (wanted + offsets[sharing]).clamp_min(0)


@dataclass(frozen=True)
class ColumnGrid(Target):
    """A grid whose inputs have `levels` [in] points each, between the smallest and the largest value of the row."""

    levels: Int[Tensor, "in"]

    def __post_init__(self) -> None:
        return None

    def check(self, out_features: int, in_features: int, name: str) -> None:
        return None

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> ColumnPoints:
        low, high = values.amin(1, keepdim=True).clamp_max(0), values.amax(1, keepdim=True).clamp_min(0)
        return ColumnPoints(self.levels, low.to(torch.float32), high.to(torch.float32))


class ColumnPoints(Points):
    """Grids with a level count of their own for each input; `low` and `high` [out, 1] are the ends of the row's range."""

    def __init__(self, levels: Int[Tensor, "in"], low: Float[Tensor, "out one"], high: Float[Tensor, "out one"]) -> None:
        self.levels, self.low, self.high = levels, low, high
        steps = (levels.to(torch.float32) - 1).clamp_min(1)
        scale = (high - low) / steps
        self.scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        self.zero = torch.round(-low / self.scale)
        self.last = (levels - 1).to(torch.float32)

    def _codes(self, values: Tensor, columns: slice | int) -> Tensor:
        codes = torch.round(values / self.scale[:, columns]) + self.zero[:, columns]
        return torch.minimum(codes.clamp_min(0), self.last[columns].expand_as(codes))

    def _values(self, codes: Tensor, columns: slice | int) -> Tensor:
        values = (codes - self.zero[:, columns]) * self.scale[:, columns]
        return torch.where(self.last[columns] > 0, values, 0.0)

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        every = slice(None)
        return self._values(self._codes(values.to(torch.float32), every), every).to(values.dtype)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        out.copy_(self._values(self._codes(column.to(torch.float32), index), index))

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        codes = self._codes(values.to(torch.float32), slice(None)).to(torch.int16)
        tensors = {"codes": codes, "levels": self.levels, "low": self.low, "high": self.high}
        rate = float(torch.log2(self.levels.to(torch.float64)).mean())
        return Encoded("int_columns", tensors, (values.shape[0], values.shape[1]), rate, simulated=True)
