"""Every matrix, as it is: nothing is given up.

    V = W

What is only trained, by the step after, starts here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.weights.base import Points, Target, dense


@dataclass(frozen=True)
class Dense(Target):
    """It has no settings."""

    name: ClassVar[str] = "dense"
    masks: ClassVar[bool] = True

    def check(self, out_features: int, in_features: int, name: str) -> None:
        return None

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> DensePoints:
        return DensePoints()


class DensePoints(Points):
    """All matrices."""

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return values.clone()

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        out.copy_(column)

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        return dense(values)
