"""A share of all entries becomes zero, wherever they cost least: the rows of a matrix compete with each other.

    kept of the matrix:  the entries with the largest  w_ij^2 * importance_j

A sweep chooses the mask of `mask_block` inputs at a time from the weights as they then are, all rows together, as SparseGPT does
(Frantar and Alistarh 2023, arXiv 2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.masks import keep_per_block
from thrifty.weights.base import Target
from thrifty.weights.masked import MaskPoints


@dataclass(frozen=True)
class Unstructured(Target):
    """sparsity: share of entries that becomes zero. mask_block: inputs whose entries compete with each other, 0 for the whole matrix."""

    name: ClassVar[str] = "unstructured"
    joint_rows: ClassVar[bool] = True
    masks: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Frantar, Alistarh", 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", "2301.00774"
    )

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mask_block: Annotated[int, Field(ge=0)] = 128

    @property
    def run(self) -> int:
        return self.mask_block

    def check(self, out_features: int, in_features: int, name: str) -> None:
        return None

    def density(self, width: int) -> float:
        return 1 - self.sparsity

    @property
    def nominal_sparsity(self) -> float:
        return self.sparsity

    def with_sparsity(self, sparsity: float) -> Unstructured:
        return replace(self, sparsity=sparsity)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> UnstructuredPoints:
        return UnstructuredPoints(self, values, importance)


class UnstructuredPoints(MaskPoints):
    """Matrices with a given number of non-zeros in each run of inputs."""

    def __init__(self, target: Unstructured, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None) -> None:
        super().__init__(values, importance)
        self.target = target

    def keep(self, gain: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        return keep_per_block(gain, self.target.sparsity, self.target.mask_block or gain.shape[1])

    def keep_run(self, gain: Float[Tensor, "out n"], columns: Int[Tensor, "n"]) -> Bool[Tensor, "out n"]:
        return keep_per_block(gain, self.target.sparsity, gain.shape[1], start=int(columns[0]))
