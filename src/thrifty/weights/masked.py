"""What all masks share: few non-zeros, chosen by what the loss rises by when an entry becomes zero."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.grids import Cells
from thrifty.core.masks import apply_mask
from thrifty.weights.base import Points, dense


class MaskPoints(Points):
    """Matrices with few non-zeros, chosen by the squares of the values."""

    adaptive = True

    def __init__(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None) -> None:
        self.importance = torch.ones_like(values[0]) if importance is None else importance.to(values.dtype)
        self.mask: Bool[Tensor, "in out"] = torch.ones(values.T.shape, dtype=torch.bool, device=values.device)

    @abstractmethod
    def keep(self, gain: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Which entries of a whole matrix stay; gain: what the loss rises by when an entry becomes zero."""

    def keep_run(self, gain: Float[Tensor, "out n"], columns: Int[Tensor, "n"]) -> Bool[Tensor, "out n"]:
        """Which entries of a run of inputs stay."""
        return self.keep(gain)

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return apply_mask(values, self.keep(values.square() * self.importance))

    def enter(self, values: Float[Tensor, "out n"], columns: Int[Tensor, "n"], curvature: Float[Tensor, "n"]) -> None:
        self.mask[columns] = self.keep_run(values.square() * curvature, columns).T

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        torch.mul(column, self.mask[index], out=out)

    def cells(self) -> Cells:
        return Cells.masked(self.mask)

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        return dense(values)
