"""What a matrix does to its inputs before it multiplies them, while the model runs.

    z = x H / sqrt(order), block by block;   then z is rounded (`core.activations`)

The matrix is that of z: W' = W H / sqrt(order) makes of z what W makes of x.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from thrifty.core.activations import Rounding
from thrifty.core.hadamard import transform


@dataclass(frozen=True)
class Reading:
    """order: of the Hadamard matrices that inputs are turned by, 0 where they are not. rounding: None where they are not rounded."""

    order: int = 0
    rounding: Rounding | None = None

    def __bool__(self) -> bool:
        return bool(self.order) or self.rounding is not None

    def turned(self, inputs: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens width"]:
        """The inputs before they are rounded."""
        return transform(inputs, self.order) if self.order else inputs

    def __call__(self, inputs: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens width"]:
        """What the matrix multiplies, in the type of the inputs."""
        turned = self.turned(inputs)
        return turned if self.rounding is None else self.rounding(turned)

    def folded(self, weight: Float[Tensor, "out width"]) -> Float[Tensor, "out width"]:
        """The matrix that makes of plain inputs what `weight` makes of turned ones."""
        return transform(weight, self.order, transpose=True) if self.order else weight


AS_THEY_ARE = Reading()
"""Inputs that nothing is done to."""
