"""Wanda: in each row the weights with the smallest |w_ij| ||x_j|| become zero; the others stay as they are.

    keep the entries with the largest  w_ij^2 gram_jj,   solved by `round` with `weighted` and the target `top_k` or `n_m`

Source: Sun, Liu, Bair and Kolter (2023), arXiv 2306.11695.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.weights.base import Preset, Treatment
from thrifty.weights.solve.round import Round
from thrifty.weights.target.n_m import Pattern, of_pattern
from thrifty.weights.target.top_k import TopK


@dataclass(frozen=True)
class Wanda(Preset):
    """sparsity: share of zeros in every row. pattern: `2:4` keeps 2 of every 4 inputs instead."""

    name: ClassVar[str] = "wanda"
    paper: ClassVar[Paper] = TopK.paper

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    pattern: Pattern | None = None

    def expand(self) -> Treatment:
        return Treatment(Round(weighted=True), of_pattern(self.pattern) if self.pattern else TopK(self.sparsity))
