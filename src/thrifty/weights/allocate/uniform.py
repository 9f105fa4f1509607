"""Everyone gets the same: each input of a matrix, each matrix of the model.

    budget of a part = mean budget of the whole

What every other way to share has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.base.records import Problem
from thrifty.weights.base import Allocator, Solver, Target


@dataclass(frozen=True)
class Uniform(Allocator):
    """No hyperparameters."""

    name: ClassVar[str] = "uniform"

    def allocate(self, problem: Problem, solver: Solver, target: Target) -> Target:
        return target
