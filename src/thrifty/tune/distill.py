"""Distillation: the tuned model learns to say what the original says, token by token, whatever the text says.

    min over offsets and scales of  mean over tokens of JSD_beta(P || S),   P the original's next-token distribution, S the tuned model's
    JSD_beta = beta KL(P || M) + (1 - beta) KL(S || M),   M = beta P + (1 - beta) S;   beta 0: KL(P || S),   beta 1: KL(S || P)

A diffusion transformer puts out no distribution but the noise e that it finds in a row of its time step. There it is

    min over the same of  mean over rows of  ||e_S - e_T||^2 / n,   S the tuned model, T the original, n numbers a row

Where both take the next step with the same variance, KL(T || S) of that step is this up to a factor by its time; beta counts nowhere. After
`aqlm`, with `moves`, on rows that the model makes itself, it is what AQUATIC-Diff trains by.

After `progressive` into `zero_free` of 2 bits this is UPQ; its beta is 0.5. No labels are needed, so any text of the kind that the model is
for will do. Weights stay on their grids at every step: gradients pass through the rounding as if it were not there.
Sources: Lee, Shin, Kim, You and Chen (2025), arXiv 2506.09104; of diffusion transformers, AQUATIC-Diff (2025), arXiv 2506.05960.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Kind
from thrifty.base.method import Paper
from thrifty.core.divergence import jensen_shannon
from thrifty.tune.base import PredictionTuner, TokenTuner


@dataclass(frozen=True)
class Distill(TokenTuner, PredictionTuner):
    """beta: which divergence, where there are distributions."""

    name: ClassVar[str] = "distill"
    paper: ClassVar[Paper] = Paper(
        "Lee, Shin, Kim, You, Chen",
        2025,
        "Unifying Block-wise PTQ and Distillation-based QAT for Progressive Quantization toward 2-bit Instruction-Tuned LLMs",
        "2506.09104",
    )

    kinds: ClassVar[tuple[Kind, ...]] = ("causal_lm", "vision", "diffusion")
    wants: ClassVar[str] = "a causal language model, an image classifier or a diffusion transformer with one chain of blocks"

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

    def prediction_loss(self, found: Float[Tensor, "rows *shape"], expected: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        return (found.to(torch.float32) - expected.to(torch.float32)).square().flatten(1).mean(1)
