"""Distillation by features: what leaves the last block of the tuned model becomes what leaves that of the original. Needs no labels.

    min over all weights of the blocks of  mean over images of  whole ||c_S - c_T||^2 / d + patches sum_i ||p_S,i - p_T,i||^2 / (n d)

c is the token that stands for the whole image, p_1 .. p_n those of its patches, both normalized as the model itself does it behind its last
block, of width d; S the tuned model, T the original. Registers between them count nowhere. Texts have patches only, their tokens. With
`vectors` biases and norms of the blocks are trained, too, as published; embeddings and what stands behind the blocks stay as they are.
After `dgmr` in one chain this is the method of its paper.
Source: Shen, Hu, Bi, Wang, Tian and Wang (2025), arXiv 2506.08591.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.tune.base import FeatureTuner


@dataclass(frozen=True)
class DistillFeatures(FeatureTuner):
    """whole, patches: what the token of the whole image counts, and what its patches do together. See `distill` for the others."""

    name: ClassVar[str] = "distill_features"
    paper: ClassVar[Paper] = Paper(
        "Shen, Hu, Bi, Wang, Tian, Wang",
        2025,
        "Diversity-Guided MLP Reduction for Efficient Large Vision Transformers",
        "2506.08591",
    )

    batch: Annotated[int, Field(ge=1)] = 32
    rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    vectors: bool = True
    whole: Annotated[float, Field(ge=0)] = 1.0
    patches: Annotated[float, Field(ge=0)] = 1.0

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(steps=3, batch=2),)

    def loss(
        self, found: Float[Tensor, "rows tokens width"], expected: Float[Tensor, "rows tokens width"], leading: int
    ) -> Float[Tensor, "rows"]:
        lost = (found.to(torch.float32) - expected.to(torch.float32)).square().mean(-1)
        patches = self.patches * lost[:, leading:].mean(1)
        return patches + self.whole * lost[:, 0] if leading else patches
