"""Few non-zeros on a grid: the intersection of a mask and any grid that holds zero, found in one go.

    kept:  the entries with the largest  (w_ij^2 - (w_ij - Q(w_ij))^2) * importance_j,   Q(w) the nearest grid point

That is what zero costs more than rounding. A sweep chooses the mask first and rounds what stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.grids import Cells
from thrifty.core.masks import apply_mask
from thrifty.weights.base import Points, Target
from thrifty.weights.masked import MaskPoints
from thrifty.weights.target.dense import Dense
from thrifty.weights.target.int import Int as IntGrid
from thrifty.weights.target.n_m import NM


@dataclass(frozen=True)
class Both(Target):
    """mask: which entries stay (`top_k`, `n_m`, `unstructured`). grid: where they lie (`int`, `float`, `ternary`, `posit`, `fixed`, ..)."""

    name: ClassVar[str] = "both"

    mask: Target = NM()
    grid: Target = IntGrid()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid.masks or isinstance(self.grid, Both) or not (self.grid.holds_zero and self.grid.by_entry):
            raise InputError(f"both: grid must be one that holds zero, as in {{int: {{bits: 4}}}}; got {self.grid.name}")
        if not self.mask.masks or isinstance(self.mask, Dense):
            raise InputError(f"both: mask must be one of top_k, n_m, unstructured; got {self.mask.name}")

    @property
    def joint_rows(self) -> bool:
        return self.mask.joint_rows

    @property
    def run(self) -> int:
        return self.mask.run

    def check(self, out_features: int, in_features: int, name: str) -> None:
        self.mask.check(out_features, in_features, name)
        self.grid.check(out_features, in_features, name)

    def outline(self, out_features: int, in_features: int) -> Encoded:
        return self.grid.outline(out_features, in_features)

    def density(self, width: int) -> float:
        return self.mask.density(width)

    @property
    def nominal_sparsity(self) -> float:
        return self.mask.nominal_sparsity

    def with_sparsity(self, sparsity: float) -> Both:
        return replace(self, mask=self.mask.with_sparsity(sparsity))

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> BothPoints:
        return BothPoints(self.mask.fit(values, importance), self.grid.fit(values, importance))


class BothPoints(Points):
    """Grid points with few non-zeros."""

    adaptive = True

    def __init__(self, mask: MaskPoints, grid: Points) -> None:
        self.mask = mask
        self.grid = grid

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        rounded = self.grid.project(values)
        gain = (values.square() - (values - rounded).square()) * self.mask.importance
        return apply_mask(rounded, self.mask.keep(gain))

    def enter(self, values: Float[Tensor, "out n"], columns: Int[Tensor, "n"], curvature: Float[Tensor, "n"]) -> None:
        self.mask.enter(values, columns, curvature)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        self.grid.snap(column, index, out)
        out.mul_(self.mask.mask[index])

    def cells(self) -> Cells | None:
        cells = self.grid.cells()
        return None if cells is None else replace(cells, kept=self.mask.mask)

    def refit(
        self, values: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
    ) -> tuple[BothPoints, Float[Tensor, "out in"]]:
        grid, values = self.grid.refit(values, weight, gram)
        return BothPoints(self.mask, grid), values

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        return self.grid.encode(values)
