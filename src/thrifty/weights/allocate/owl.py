"""Sparsity by block from outliers (OWL): blocks where few weights matter far more than the others keep more of them.

    D_l = share of the |w_ij| ||x_j|| of block l that are above M times their mean
    s_l = S - 2 lam (d_l - mean d),    d_l from 0 at the smallest D to 1 at the largest

The mean is over all weights, and what clipping takes from one block goes to the others.
Source: Yin, Wu, Zhang, Hsieh, Wang, Jia, Li, Jaiswal, Pechenizkiy, Liang, Bendersky, Wang and Liu (2023), arXiv 2310.05175.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.core.shares import shifted_to_mean, stretched
from thrifty.weights.layerwise import HIGHEST, Layerwise, Look


@dataclass(frozen=True)
class OWL(Layerwise):
    """outlier: an entry is one above this times the mean (M). lam: half of how far shares go apart."""

    name: ClassVar[str] = "owl"
    calibrated: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Yin, Wu, Zhang, Hsieh, Wang, Jia, Li, Jaiswal, Pechenizkiy, Liang, Bendersky, Wang, Liu",
        2023,
        "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
        "2310.05175",
    )

    outlier: Annotated[float, Field(gt=1)] = 5.0
    lam: Annotated[float, Field(ge=0, lt=0.5)] = 0.08

    def score(self, look: Look) -> float:
        """The share of outliers; matrices that no row reached do not count."""
        seen = [(weight, look.energies[path].sqrt()) for path, weight in look.weights.items() if path in look.energies]
        entries = sum(weight.numel() for weight, _ in seen)
        if not entries:
            return float("nan")
        mean = sum(float((weight.abs() * norm).double().sum()) for weight, norm in seen) / entries
        return sum(int((weight.abs() * norm > self.outlier * mean).sum()) for weight, norm in seen) / entries

    def share(self, scores: Sequence[float], sizes: Sequence[int], sparsity: float) -> list[float]:
        return shifted_to_mean([-2 * self.lam * place for place in stretched(scores)], sizes, sparsity, HIGHEST)
