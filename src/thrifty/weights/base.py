"""The verbs of the algebra of weights. A published method is a point in the product of these axes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.base.method import Method
from thrifty.base.records import Encoded, Problem, Rewrite, Share, Solution
from thrifty.core.statistics import Statistics
from thrifty.base.anatomy import Space


class Cell(ABC):
    """The set that one run of columns must end up in, fitted to those columns: a grid, a mask, or both."""

    @abstractmethod
    def project(self, values: Float[Tensor, "out n"], start: int = 0) -> Float[Tensor, "out n"]:
        """The nearest point of the set for columns start .. start + n of the cell."""


class Target(Method, ABC):
    """The set a matrix must end up in, and how its points are held.

    `span` is the number of consecutive input columns that one cell covers (a group, an N:M block); 0 means the whole row.
    `joint_rows` tells whether the rows of a matrix compete with each other, so that matrices must not be stacked.
    """

    family: ClassVar[str] = "weights.target"
    span: ClassVar[int] | int = 0
    joint_rows: ClassVar[bool] | bool = False

    @abstractmethod
    def check(self, out_features: int, in_features: int, name: str) -> None:
        """Raise InputError, naming the linear, when a matrix of this shape cannot be held."""

    @abstractmethod
    def fit(self, columns: Float[Tensor, "out n"], importance: Float[Tensor, "n"] | None = None) -> Cell:
        """The cell for these columns. importance: weight of each column's squared error (None: all equal)."""

    @abstractmethod
    def project(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> Float[Tensor, "out in"]:
        """The nearest point of the set in the norm sum_j importance_j (.)_j^2, with cells fitted on `values`."""

    @abstractmethod
    def encode(self, values: Float[Tensor, "out in"], cells: Any) -> Encoded:
        """How a point of the set is held. `encode(...).decode()` equals `values` exactly."""


class Solver(Method, ABC):
    """How the target is reached: min tr((W - V) G (W - V)^T), V in target."""

    family: ClassVar[str] = "weights.solve"

    @abstractmethod
    def solve(self, problem: Problem, target: Target) -> Solution:
        """A point of the target; its loss is never above that of the target's plain projection unless it says so in `warnings`."""


class Transform(Method, ABC):
    """An equivalent rewrite of a space that makes its consumers easier to compress."""

    family: ClassVar[str] = "weights.transform"

    @abstractmethod
    def rewrite(self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, target: Target | None) -> Rewrite | None:
        """The rewrite of `space`, whose consumers have these weights; None leaves it as it is.

        target: what the consumers will be projected onto next, for methods that search against it.
        """


class Allocator(Method, ABC):
    """Who gets how much: bits for the columns of a matrix, for the linears of a model."""

    family: ClassVar[str] = "weights.allocate"


@dataclass(frozen=True)
class Treatment:
    """What one step does to the linears it selects: transforms first, then one solve."""

    transform: Transform | None = None
    solver: Solver | None = None
    target: Target | None = None


class Preset(Method, ABC):
    """A named point of the algebra: it expands into treatments."""

    family: ClassVar[str] = "weights.preset"

    @abstractmethod
    def expand(self) -> Treatment:
        """The solver and the target that the name stands for."""


__all__ = ["Allocator", "Bool", "Cell", "Preset", "Share", "Solver", "Target", "Transform", "Treatment", "torch"]
