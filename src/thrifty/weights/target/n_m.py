"""N:M sparsity: of every m consecutive inputs of a row, n entries are kept (2:4 for the sparse tensor cores of GPUs).

    kept of every m:  the n entries with the largest  w_ij^2 * importance_j

A sweep chooses them for m inputs at a time from the weights as they then are (Frantar and Alistarh 2023, arXiv 2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.core.masks import keep_n_of_m
from thrifty.weights.base import Target
from thrifty.weights.masked import MaskPoints


@dataclass(frozen=True)
class NM(Target):
    """n: entries kept of every m consecutive inputs."""

    name: ClassVar[str] = "n_m"
    masks: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Frantar, Alistarh", 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", "2301.00774"
    )

    n: Annotated[int, Field(ge=1)] = 2
    m: Annotated[int, Field(ge=2)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n > self.m:
            raise InputError(f"n_m: n is wrong, it must be at most m; got n {self.n} and m {self.m}")

    @property
    def run(self) -> int:
        return self.m

    def check(self, out_features: int, in_features: int, name: str) -> None:
        if in_features % self.m:
            raise InputError(f"m {self.m} does not divide the width {in_features} of {name}; skip it, or choose another m")

    def density(self, width: int) -> float:
        return self.n / self.m

    @property
    def nominal_sparsity(self) -> float:
        return 1 - self.n / self.m

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> NMPoints:
        return NMPoints(self, values, importance)


class NMPoints(MaskPoints):
    """Matrices with at most n non-zeros in every m inputs of a row."""

    def __init__(self, target: NM, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None) -> None:
        super().__init__(values, importance)
        self.target = target

    def keep(self, gain: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        return keep_n_of_m(gain, self.target.n, self.target.m)


Pattern = Annotated[str, Field(pattern=r"^[1-9]\d*:[1-9]\d*$")]
"""`2:4`: how recipes write N:M."""


def of_pattern(pattern: str) -> NM:
    """`2:4` as the target that keeps 2 of every 4 inputs."""
    n, m = (int(word) for word in pattern.split(":"))
    return NM(n, m)
