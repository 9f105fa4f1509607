"""Sparsity by block from how much a block changes what passes through it (block influence): who changes little is pruned more.

    BI_l = 1 - mean over tokens of cos(x, block_l(x))
    s_l = S r_l sum_p n_p / sum_p n_p r_p,    r_l from 1 + epsilon at the smallest BI to 1 - epsilon at the largest

The score is ShortGPT's, which removes whole blocks by it; the shares in between are those of `alpha_pruning`, which is not published.
Source: Men, Xu, Zhang, Wang, Lin, Lu, Han and Chen (2024), arXiv 2403.03853.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.base.method import Paper
from thrifty.weights.layerwise import ByRank, Look


@dataclass(frozen=True)
class BlockInfluence(ByRank):
    """epsilon: how far shares go apart."""

    name: ClassVar[str] = "block_influence"
    calibrated: ClassVar[bool] = True
    rising: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        "Men, Xu, Zhang, Wang, Lin, Lu, Han, Chen",
        2024,
        "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        "2403.03853",
    )

    def score(self, look: Look) -> float:
        return look.influence
