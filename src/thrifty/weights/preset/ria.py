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
from thrifty.weights.base import Treatment
from thrifty.weights.pruning import Pruning
from thrifty.weights.solve.relative_importance import RelativeImportance
from thrifty.weights.target.unstructured import Unstructured


@dataclass(frozen=True)
class RIA(Pruning):
    """sparsity: share of zeros in the matrix. pattern: `2:4` keeps 2 of every 4 inputs instead. power: of the input's norm. share: who gets
    how much of the sparsity. back_solve: whether what stays takes the values that lose least."""

    name: ClassVar[str] = "ria"
    paper: ClassVar[Paper] = RelativeImportance.paper

    power: Annotated[float, Field(ge=0, le=4)] = 0.5

    def expand(self) -> Treatment:
        return self.treatment(RelativeImportance(self.power), Unstructured(self.sparsity, 0))
