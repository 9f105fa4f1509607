"""Everyone gets the same: each input of a matrix, each matrix of the model.

    budget of a part = mean budget of the whole

What every other way to share has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.base.errors import InputError
from thrifty.base.records import Curve, Problem, Share
from thrifty.weights.base import Allocator, Sharing, Solver, Target


@dataclass(frozen=True)
class Uniform(Allocator, Sharing):
    """No hyperparameters."""

    name: ClassVar[str] = "uniform"

    def allocate(self, problem: Problem, solver: Solver, target: Target) -> Target:
        return target

    def share(self, curves: Sequence[Curve], budget: float) -> Share:
        """Of the options that all can have within the budget, the one that loses least in sum."""
        spent = [sum(column) for column in zip(*(curve.costs for curve in curves), strict=True)]
        lost = [sum(column) for column in zip(*(curve.losses for curve in curves), strict=True)]
        fitting = [option for option, cost in enumerate(spent) if cost <= budget * (1 + 1e-12)]
        if not fitting:
            raise InputError(f"a budget of {budget:g} is too small: the cheapest option for all costs {min(spent):g}")
        best = min(fitting, key=lambda option: (lost[option], spent[option], option))
        return self.of(curves, [best] * len(curves))
