"""Rotation of the inputs of down-projections while the model runs: no neuron that the gate makes large stands out once it is rounded.

    z = x H / sqrt(n),   W x = (W H / sqrt(n)) z,   H a Hadamard matrix (block by block where none of the whole width is known)

Between the gate and the down-projection stands a product, or an activation function, through which no rotation passes, so this one is not
folded into what comes before: the result says that the inputs are turned, and its readers do it. That is thrifty's own container
(`--format thrifty`); `thrifty export --to dense` multiplies the matrix by H^T again. It pays where inputs are rounded to few bits.
Experts stay as they are: all of them are called in one step that leaves no room for it.
Source: Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler and Hensman (2024), arXiv 2404.00456.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.base.method import Paper
from thrifty.core.hadamard import Rotation, known_order
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Transform, Treatment


@dataclass(frozen=True)
class Online(Transform):
    """The order of the blocks is the largest known one that divides the width."""

    name: ClassVar[str] = "online"
    paper: ClassVar[Paper] = Paper("Ashkboos et al.", 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", "2404.00456")
    wants: ClassVar[str] = "neurons before them whose number a Hadamard matrix divides"
    while_running: ClassVar[bool] = True

    def suits(self, space: Space) -> bool:
        return space.unit == "neuron" and bool(space.consumers) and known_order(space.width) > 1

    def rewrite(
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, treatment: Treatment | None
    ) -> Rewrite | None:
        ones = torch.ones(space.width, device=weights[0].device)
        return Rewrite(space, ones, Rotation(ones, known_order(space.width)), while_running=True)
