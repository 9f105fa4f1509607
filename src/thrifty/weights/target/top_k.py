"""The same number of non-zeros in each row: the entries that matter most stay.

    kept of each row:  the entries with the largest  w_ij^2 * importance_j

With equal importance this is magnitude pruning by row; with the diagonal of the Gram matrix it is Wanda's rule (Sun, Liu, Bair and Kolter
2023, arXiv 2306.11695). A sweep over the inputs keeps the row's share in every run of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.masks import keep_per_row
from thrifty.weights.base import Target
from thrifty.weights.masked import MaskPoints


@dataclass(frozen=True)
class TopK(Target):
    """sparsity: share of each row that becomes zero. mask_block: inputs whose mask a sweep chooses at once."""

    name: ClassVar[str] = "top_k"
    masks: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper("Sun, Liu, Bair, Kolter", 2023, "A Simple and Effective Pruning Approach for LLMs", "2306.11695")

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mask_block: Annotated[int, Field(ge=1)] = 128

    @property
    def run(self) -> int:
        return self.mask_block

    def check(self, out_features: int, in_features: int, name: str) -> None:
        return None

    def kept(self, width: int) -> int:
        """Non-zeros of a row of `width` inputs."""
        return width - int(self.sparsity * width + 1e-9)

    def density(self, width: int) -> float:
        return self.kept(width) / width

    @property
    def nominal_sparsity(self) -> float:
        return self.sparsity

    def with_sparsity(self, sparsity: float) -> TopK:
        return replace(self, sparsity=sparsity)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> TopKPoints:
        return TopKPoints(self, values, importance)


class TopKPoints(MaskPoints):
    """Rows with the same number of non-zeros."""

    def __init__(self, target: TopK, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None) -> None:
        super().__init__(values, importance)
        self.total = target.kept(values.shape[1])
        self.seen = 0

    def keep(self, gain: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        return keep_per_row(gain, self.total)

    def keep_run(self, gain: Float[Tensor, "out n"], columns: Int[Tensor, "n"]) -> Bool[Tensor, "out n"]:
        width, before = self.mask.shape[0], self.seen
        self.seen += gain.shape[1]
        return keep_per_row(gain, round(self.total * self.seen / width) - round(self.total * before / width))
