"""Sparsity by block from heavy tails (AlphaPruning): what is less heavy-tailed is less well trained, and pruned more.

    alpha_l = mean over the matrices of block l of Hill's estimate from the eigenvalues of W^T W
    s_l = S r_l sum_p n_p / sum_p n_p r_p,    r_l from 1 - epsilon at the smallest alpha to 1 + epsilon at the largest

Whole matrices are looked at, so that their shape counts, too; `farms` mends that.
Source: Lu, Zhou, Liu, Wang, Mahoney and Yang (2024), arXiv 2410.10912.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.base.method import Paper
from thrifty.core.spectra import Rule, eigenvalues, hill, whole_cost
from thrifty.weights.layerwise import ByRank, Look


@dataclass(frozen=True)
class AlphaPruning(ByRank):
    """epsilon: how far shares go apart. rule: where a tail starts (`peak`, `median`, `goodness`)."""

    name: ClassVar[str] = "alpha_pruning"
    paper: ClassVar[Paper] = Paper(
        "Lu, Zhou, Liu, Wang, Mahoney, Yang",
        2024,
        "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of Large Language Models",
        "2410.10912",
    )

    rule: Rule = "peak"

    def score(self, look: Look) -> float:
        alphas = [hill(eigenvalues(weight), self.rule) for weight in look.weights.values()]
        return sum(alphas) / len(alphas)

    def operations(self, out_features: int, in_features: int) -> float:
        return whole_cost(out_features, in_features)[0]

    def working_bytes(self, out_features: int, in_features: int) -> int:
        return whole_cost(out_features, in_features)[1]
