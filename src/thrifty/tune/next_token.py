"""Quantization-aware training on text: the tuned model goes on learning what it was trained for.

    min over offsets and scales of  mean over tokens of -log S(next token)

With `ternary` as the target this is the second stage of BitCPM: training in high precision first (the model that comes in), then on three
values, with the rate warmed up anew. The text must be of the kind that the model was trained on, and enough of it: what is repeated is
learnt by heart.
Source: MiniCPM Team (2025), arXiv 2506.07900.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from thrifty.tune.base import TokenTuner


@dataclass(frozen=True)
class NextToken(TokenTuner):
    """See `distill` for the settings."""

    name: ClassVar[str] = "next_token"
    reference: ClassVar[bool] = False

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(steps=3, batch=2),)

    def loss(
        self,
        found: Float[Tensor, "tokens vocabulary"],
        expected: Float[Tensor, "tokens vocabulary"] | None,
        targets: Int[Tensor, "tokens"],
    ) -> Float[Tensor, "tokens"]:
        return functional.cross_entropy(found.to(torch.float32), targets, reduction="none")
