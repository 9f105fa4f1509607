"""What all presets that prune share: how much becomes zero, who gets how much of it, and what the weights that stay become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from thrifty.weights.allocate.uniform import Uniform
from thrifty.weights.base import Allocator, Preset, Solver, Target, Treatment
from thrifty.weights.solve.back_solve import BackSolve
from thrifty.weights.target.n_m import Pattern, of_pattern


@dataclass(frozen=True)
class Pruning(Preset):
    """sparsity: share of zeros. pattern: `2:4` keeps 2 of every 4 inputs instead. share: who gets how much of the sparsity. back_solve:
    whether what stays takes the values that lose least."""

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    pattern: Pattern | None = None
    share: Allocator = field(default=Uniform(), kw_only=True)
    back_solve: bool = field(default=False, kw_only=True)

    def treatment(self, solver: Solver, target: Target) -> Treatment:
        """By this solver into the target, or into the pattern where one is given."""
        by = BackSolve(solver) if self.back_solve else solver
        return Treatment(by, of_pattern(self.pattern) if self.pattern else target, self.share)
