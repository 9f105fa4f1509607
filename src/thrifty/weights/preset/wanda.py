"""Wanda: in each row the weights with the smallest |w_ij| ||x_j|| become zero; the others stay as they are.

    keep the entries with the largest  w_ij^2 gram_jj,   solved by `round` with `weighted` and the target `top_k` or `n_m`

Source: Sun, Liu, Bair and Kolter (2023), arXiv 2306.11695.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.base.method import Paper
from thrifty.weights.base import Treatment
from thrifty.weights.pruning import Pruning
from thrifty.weights.solve.round import Round
from thrifty.weights.target.top_k import TopK


@dataclass(frozen=True)
class Wanda(Pruning):
    """sparsity: share of zeros in every row. pattern: `2:4` keeps 2 of every 4 inputs instead. share: who gets how much of the sparsity.
    back_solve: whether what stays takes the values that lose least."""

    name: ClassVar[str] = "wanda"
    paper: ClassVar[Paper] = TopK.paper

    def expand(self) -> Treatment:
        return self.treatment(Round(weighted=True), TopK(self.sparsity))
