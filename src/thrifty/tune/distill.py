"""Distillation: the tuned model learns to say what the original says, token by token, whatever the text says.

    min over offsets and scales of  mean over tokens of JSD_beta(P || S),   P the original's next-token distribution, S the tuned model's
    JSD_beta = beta KL(P || M) + (1 - beta) KL(S || M),   M = beta P + (1 - beta) S;   beta 0: KL(P || S),   beta 1: KL(S || P)

After `progressive` into `zero_free` of 2 bits this is UPQ; its beta is 0.5. No labels are needed, so any text of the kind that the model is
for will do. Weights stay on their grids at every step: gradients pass through the rounding as if it were not there.
Source: Lee, Shin, Kim, You and Chen (2025), arXiv 2506.09104.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Kind
from thrifty.base.method import Paper
from thrifty.core.divergence import jensen_shannon
from thrifty.tune.base import TokenTuner


@dataclass(frozen=True)
class Distill(TokenTuner):
    """beta: which divergence."""

    name: ClassVar[str] = "distill"
    paper: ClassVar[Paper] = Paper(
        "Lee, Shin, Kim, You, Chen",
        2025,
        "Unifying Block-wise PTQ and Distillation-based QAT for Progressive Quantization toward 2-bit Instruction-Tuned LLMs",
        "2506.09104",
    )

    kinds: ClassVar[tuple[Kind, ...]] = ("causal_lm", "vision")
    wants: ClassVar[str] = "a causal language model or an image classifier"

    beta: Annotated[float, Field(ge=0, le=1)] = 0.5

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(steps=3, batch=2),)

    def loss(
        self,
        found: Float[Tensor, "tokens vocabulary"],
        expected: Float[Tensor, "tokens vocabulary"] | None,
        targets: Int[Tensor, "tokens"],
    ) -> Float[Tensor, "tokens"]:
        assert expected is not None, "the original's logits are there where `reference` says so"
        return jensen_shannon(expected, found, self.beta)
