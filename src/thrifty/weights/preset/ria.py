"""RIA: weights that are small beside their own row and column, at small inputs, become zero; the others stay as they are.

    keep the entries with the largest  ( |w_ij| / sum_k |w_ik|  +  |w_ij| / sum_k |w_kj| ) ||x_j||^power,

over the whole matrix, or n of every m inputs; solved by `relative_importance`. The published permutation of inputs for n:m is not done.
Source: Zhang, Bai, Lin, Zhao, Hou and Cannistraci (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.weights.base import Preset, Treatment
from thrifty.weights.solve.relative_importance import RelativeImportance
from thrifty.weights.target.n_m import Pattern, of_pattern
from thrifty.weights.target.unstructured import Unstructured


@dataclass(frozen=True)
class RIA(Preset):
    """sparsity: share of zeros in the matrix. pattern: `2:4` keeps 2 of every 4 inputs instead. power: of the input's norm."""

    name: ClassVar[str] = "ria"
    paper: ClassVar[Paper] = RelativeImportance.paper

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    pattern: Pattern | None = None
    power: Annotated[float, Field(ge=0, le=4)] = 0.5

    def expand(self) -> Treatment:
        return Treatment(RelativeImportance(self.power), of_pattern(self.pattern) if self.pattern else Unstructured(self.sparsity, 0))
