"""Magnitude pruning: the smallest weights of a matrix become zero, no calibration data.

    keep the entries with the largest  |w_ij|

Older than the papers here, and what they have to beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.weights.base import Preset, Treatment
from thrifty.weights.solve.round import Round
from thrifty.weights.target.n_m import Pattern, of_pattern
from thrifty.weights.target.unstructured import Unstructured


@dataclass(frozen=True)
class Magnitude(Preset):
    """sparsity: share of zeros in the matrix. pattern: `2:4` keeps 2 of every 4 inputs instead."""

    name: ClassVar[str] = "magnitude"

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    pattern: Pattern | None = None

    def expand(self) -> Treatment:
        return Treatment(Round(), of_pattern(self.pattern) if self.pattern else Unstructured(self.sparsity, 0))
