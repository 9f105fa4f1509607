"""Reparameterized inputs: what a normalization puts out is rescaled and shifted by channel, so that one grid does for all of them.

    x' = (x - m) / r,   r_c = s_c / mean(s),   m_c = -z_c s_c,   s_c and z_c the scale and the zero point that channel c would have alone

Codes of x' on the layer's one grid are those that x has on a grid for each channel. The normalization's gain and bias and the consumers'
columns and biases take r and m in, so the function stays as it is; where one of them has no bias, only r is taken out, of grids centred on
zero. Weights of wide channels grow by r: a `strength` below 1 takes r^strength. It does something where inputs are rounded (`activation`);
for probabilities of attention see `thrifty.core.log_sqrt2`.
Source: Dong, Wu, Wang, Lou, Zheng, Gong, Wang and Zhou (2025), arXiv 2506.08496, after RepQ-ViT (Li et al. 2023, arXiv 2212.08254).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.base.method import Need, Paper
from thrifty.core.layer_grid import centred_grid, layer_grid
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Transform, Treatment


@dataclass(frozen=True)
class CoQMoE(Transform):
    """strength: how much of the difference between channels moves into the weights; 0 none, 1 all."""

    name: ClassVar[str] = "coqmoe"
    paper: ClassVar[Paper] = Paper(
        "Dong, Wu, Wang, Lou, Zheng, Gong, Wang, Zhou",
        2025,
        "CoQMoE: Co-Designed Quantization and Computation Orchestration for Mixture-of-Experts Vision Transformer on FPGA",
        "2506.08496",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"range"})
    wants: ClassVar[str] = "a norm before them that takes on a scale"
    for_rounded_inputs: ClassVar[bool] = True

    strength: Annotated[float, Field(ge=0, le=1)] = 1.0

    def suits(self, space: Space) -> bool:
        return space.normed and super().suits(space)

    def rewrite(
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, treatment: Treatment | None
    ) -> Rewrite | None:
        if treatment is None or treatment.activation is None or statistics.tokens == 0:
            return None
        if not space.holds_shift:
            return Rewrite(space, centred_grid(statistics.low, statistics.high).pow(self.strength))
        ratio, shift = layer_grid(statistics.low, statistics.high, treatment.activation.outline.bits)
        return Rewrite(space, ratio.pow(self.strength), shift=shift)
