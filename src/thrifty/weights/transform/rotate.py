"""Rotation of the hidden states between all blocks: every matrix that reads or writes them is turned, and the function stays.

    h' = h Q,   Q = diag(signs) H / sqrt(n), H a Hadamard matrix, signs drawn at random

Channels of h that are much larger than the others, and the columns of the matrices that read them, are spread over all channels, so that
few bits reach further. The gains of the norms move into the matrices behind them. Behind a LayerNorm Q is one that keeps the mean. A head
that shares its matrix with the embeddings gets one of its own, which costs its bytes. Models that normalize what a block adds (Gemma 2,
BERT) cannot be turned. The inputs of the down-projection stay as they are: through the gate before it no rotation passes, and to turn them
while the model runs needs a reader that does.
Source: Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler and Hensman (2024), arXiv 2404.00456.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.core.hadamard import Rotation, known_order
from thrifty.weights.base import Turn


@dataclass(frozen=True)
class Rotate(Turn):
    """seed: draws the signs."""

    name: ClassVar[str] = "rotate"
    paper: ClassVar[Paper] = Paper("Ashkboos et al.", 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", "2404.00456")

    seed: Annotated[int, Field(ge=0)] = 0

    def rotation(self, width: int, keeps_mean: bool) -> Rotation:
        if known_order(width) == 1:
            raise InputError(f"rotate: no Hadamard matrix fits hidden states {width} wide; leave it out")
        return Rotation.random(width, self.seed, keeps_mean=keeps_mean)
