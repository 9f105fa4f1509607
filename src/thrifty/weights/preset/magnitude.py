"""Magnitude pruning: the smallest weights of a matrix become zero, no calibration data.

    keep the entries with the largest  |w_ij|

Older than the papers here, and what they have to beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.weights.base import Treatment
from thrifty.weights.pruning import Pruning
from thrifty.weights.solve.round import Round
from thrifty.weights.target.unstructured import Unstructured


@dataclass(frozen=True)
class Magnitude(Pruning):
    """sparsity: share of zeros in the matrix. pattern: `2:4` keeps 2 of every 4 inputs instead. share: who gets how much of the sparsity.
    back_solve: whether what stays takes the values that lose least."""

    name: ClassVar[str] = "magnitude"

    def expand(self) -> Treatment:
        return self.treatment(Round(), Unstructured(self.sparsity, 0))
