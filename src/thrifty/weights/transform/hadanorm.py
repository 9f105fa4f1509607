"""Centring, scaling and rotation of inputs before they are rounded: what all tokens have in common needs no bits.

    z = ((x - mu) / s) Q,   x W^T + b = z (W diag(s) Q)^T + (b + W mu),   s_j = std(x_j)^alpha, its geometric mean at 1

The means mu are those of the calibration inputs, so that no token learns of later ones. The bias of a LayerNorm or of a value projection
takes them off, the biases of the matrices that read the result give W mu back, and the function stays. Q rotates the values of each head;
behind a norm there is none, for its gain has no room for one: `rotate` before this step turns what all norms see. Spaces without these
biases stay as they are, the whole of a Llama among them.
Source: Federici, Del Chiaro, van Breugel, Whatmough and Nagel (2025), arXiv 2506.09932 (there the means are of each sample, taken while
the model runs).
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
from thrifty.core.fold import tie
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Transform, Treatment
from thrifty.weights.transform.hadamard import head_rotation, head_size


@dataclass(frozen=True)
class HadaNorm(Transform):
    """alpha: how much of the differences between the channels' spreads is scaled away; 0 none, 1 all. seed: draws the signs."""

    name: ClassVar[str] = "hadanorm"
    paper: ClassVar[Paper] = Paper(
        "Federici et al.", 2025, "HadaNorm: Diffusion Transformer Quantization through Mean-Centered Transformations", "2506.09932"
    )
    wants: ClassVar[str] = "a LayerNorm or a value projection with a bias before them, and biases of their own"

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: Annotated[int, Field(ge=0)] = 0

    def suits(self, space: Space) -> bool:
        return space.holds_shift

    def rewrite(
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, treatment: Treatment | None
    ) -> Rewrite | None:
        if statistics.tokens == 0:
            return None
        mean = tie(statistics.mean, space.repeat, space.unit_size, "mean")
        variance = tie(statistics.gram.diagonal() - statistics.mean.square(), space.repeat, space.unit_size, "mean")
        turned = space.commutes_with == "any" and head_size(space) > 1
        return Rewrite(space, spread(variance, self.alpha), head_rotation(space, self.seed) if turned else None, mean)


def spread(variance: Float[Tensor, "width"], alpha: float) -> Float[Tensor, "width"]:
    """std^alpha with its geometric mean at 1; channels that never change keep 1."""
    alive = variance > 1e-12 * variance.max().clamp_min(0)
    if alpha == 0 or not bool(alive.any()):
        return torch.ones_like(variance)
    logs = torch.where(alive, variance, torch.ones_like(variance)).log() * (alpha / 2)
    return torch.where(alive, (logs - logs[alive].mean()).exp(), torch.ones_like(logs))
