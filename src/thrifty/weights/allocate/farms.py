"""Sparsity by block from heavy tails, measured on windows of one shape (FARMS): what is less heavy-tailed is pruned more.

    alpha_l = mean over the matrices of block l of Hill's estimate from the eigenvalues of all their windows together
    s_l = S r_l sum_p n_p / sum_p n_p r_p,    r_l from 1 - epsilon at the smallest alpha to 1 + epsilon at the largest

Windows are squares (`ratio` 1) of the smaller side of a matrix, `side` at most, on a grid of `positions` by `positions`. With windows the
shape of a matrix no longer decides its alpha, as it does for `alpha_pruning`. Weights alone are looked at. What a share above 0.998 leaves
over is given to the other blocks. `farms_rates` gives rates of training by the same windows.
Source: Hu, Goel, Killiakov and Yang (2025), arXiv 2506.06280.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.core.spectra import Rule, farms, windows_cost
from thrifty.weights.layerwise import ByRank, Look


@dataclass(frozen=True)
class Farms(ByRank):
    """epsilon: how far shares go apart. rule: where a tail starts (`peak`, `median`, `goodness`). side: rows of a window at most. ratio: of
    its columns to its rows. positions: windows along either side at most."""

    name: ClassVar[str] = "farms"
    paper: ClassVar[Paper] = Paper(
        "Hu, Goel, Killiakov, Yang",
        2025,
        "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias",
        "2506.06280",
    )

    rule: Rule = "peak"
    side: Annotated[int, Field(ge=2)] = 2000
    ratio: Annotated[float, Field(gt=0, le=64)] = 1.0
    positions: Annotated[int, Field(ge=1, le=100)] = 15

    def score(self, look: Look) -> float:
        alphas = [farms(weight, self.side, self.ratio, self.positions, self.rule) for weight in look.weights.values()]
        return sum(alphas) / len(alphas)

    def operations(self, out_features: int, in_features: int) -> float:
        return windows_cost(out_features, in_features, self.side, self.ratio, self.positions)[0]

    def working_bytes(self, out_features: int, in_features: int) -> int:
        return windows_cost(out_features, in_features, self.side, self.ratio, self.positions)[1]
