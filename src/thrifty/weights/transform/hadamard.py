"""Rotation of the values of each head: no channel that the output projection reads stands out, and none of its columns does.

    z = x Q,   W x = (W Q) z,   Q = diag(signs) H / sqrt(n) for each head, H a Hadamard matrix, signs drawn at random

The value projection writes rotated values, attention averages them, and the output projection rotates them back; query heads that share a
value head share its rotation. Nothing is computed for it at run time. Other spaces inside a block have norms, gates or activation functions
before them, through which no rotation passes; `rotate` turns the hidden states between the blocks, `online` those before down-projections.
Source: Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler and Hensman (2024), arXiv 2404.00456.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.base.method import Paper
from thrifty.core.fold import copied
from thrifty.core.hadamard import Rotation, known_order
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Transform, Treatment


@dataclass(frozen=True)
class Hadamard(Transform):
    """seed: draws the signs."""

    name: ClassVar[str] = "hadamard"
    paper: ClassVar[Paper] = Paper("Ashkboos et al.", 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", "2404.00456")
    wants: ClassVar[str] = "a value projection of its own before them"

    seed: Annotated[int, Field(ge=0)] = 0

    def suits(self, space: Space) -> bool:
        return bool(space.producers) and space.commutes_with in ("rotation", "any") and head_size(space) > 1

    def rewrite(
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, treatment: Treatment | None
    ) -> Rewrite | None:
        ones = torch.ones(space.width, device=weights[0].device)
        return Rewrite(space, ones, head_rotation(space, self.seed))


def head_size(space: Space) -> int:
    """Channels that are rotated together: those of one head, as the producer writes them."""
    return space.unit_size // space.repeat


def head_rotation(space: Space, seed: int) -> Rotation:
    """A rotation of each head by itself, the same for all copies of a producer's head."""
    size = head_size(space)
    written = Rotation.random(space.width // space.repeat, seed, order=known_order(size))
    return Rotation(copied(written.signs, space.repeat, space.unit_size), written.order)
