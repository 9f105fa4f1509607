"""Smoothing: what is hard to quantize in the inputs is moved into the weights, channel by channel.

    s_j = max |x_j|^alpha / max_i |W_ij|^(1 - alpha),   consumers read x / s and hold W diag(s)

At alpha = 0.5 inputs and weights of a channel end up with the same largest magnitude. The weights' maximum is taken over all consumers
of the space, for they share its inputs.
Source: Xiao, Lin, Seznec, Wu, Demouth and Han (2022), arXiv 2211.10438.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.base.method import Need, Paper
from thrifty.core.fold import tie
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Transform, Treatment

SMALLEST = 1e-5
"""Channels whose weights are all smaller than this count as if they were this large."""


@dataclass(frozen=True)
class SmoothQuant(Transform):
    """alpha: how much of the difficulty moves into the weights; 0 none, 1 all."""

    name: ClassVar[str] = "smoothquant"
    paper: ClassVar[Paper] = Paper(
        "Xiao, Lin, Seznec, Wu, Demouth, Han",
        2022,
        "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
        "2211.10438",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"absolute_max"})

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5

    def rewrite(
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, treatment: Treatment | None
    ) -> Rewrite | None:
        if statistics.tokens == 0:
            return None
        largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp_min(SMALLEST)
        inputs = tie(statistics.absolute_max, space.repeat, space.unit_size, "max")
        shared = tie(largest, space.repeat, space.unit_size, "max")
        scale = inputs.pow(self.alpha) / shared.pow(1 - self.alpha)
        return Rewrite(space, torch.where(inputs > 0, scale, torch.ones_like(scale)))
