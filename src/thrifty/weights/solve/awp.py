"""Projected gradient descent on the output error: activation-aware pruning and quantization (AWP).

    min over V in the target of  f(V) = tr((W - V) G (W - V)^T);    V <- Proj(V + (W - V) G D^-1),   D = rho diag(G)

rho is the largest eigenvalue of diag(G)^-1/2 G diag(G)^-1/2, so that D - G is positive semidefinite and no step raises f; Proj is the
nearest point in the norm of D: top-k of |v_ij| sqrt(G_jj) for masks, plain rounding on a fixed grid. `precondition: false` takes one step
length for all inputs, 1 / lambda_max(G), and the plain nearest point. The start is the target's nearest point (Wanda for masks, rounding
for grids); the best iterate is returned. Source: Liu, Koike-Akino, Wang, Mansour and Brand (2025), arXiv 2506.10205.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.linalg import largest_eigenvalue
from thrifty.weights.base import Solver, Target

SAFETY = 1.02
"""Power iteration comes from below: the step is shortened by as much as it may have missed."""


@dataclass(frozen=True)
class AWP(Solver):
    """iterations: largest number of steps. tolerance: stop when a step moves less than this share of ||W||. precondition: see above."""

    name: ClassVar[str] = "awp"
    paper: ClassVar[Paper] = Paper(
        "Liu, Koike-Akino, Wang, Mansour, Brand",
        2025,
        "AWP: Activation-Aware Weight Pruning and Quantization with Projected Gradient Descent",
        "2506.10205",
    )

    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    tolerance: Annotated[float, Field(ge=0)] = 1e-4
    precondition: bool = True

    def solve(self, problem: Problem, target: Target) -> Solution:
        weight, gram = problem.weight, problem.gram.to(problem.weight.dtype)
        diagonal = _positive(gram.diagonal())
        points = target.fit(weight, diagonal if self.precondition else None)
        step = self._step(gram, diagonal)
        now = points.project(weight)
        slope = (weight - now) @ gram
        best, least = now, _row_loss(weight, now, slope)
        first, size = float(least.sum()), float(torch.linalg.vector_norm(weight))
        taken = 0
        while taken < self.iterations:
            taken += 1
            previous, now = now, points.project(now + slope * step)
            slope = (weight - now) @ gram
            loss = _row_loss(weight, now, slope)
            better = (loss.sum() < least.sum()).expand_as(loss) if target.joint_rows else loss < least
            best = torch.where(better[:, None], now, best)
            least = torch.where(better, loss, least)
            if float(torch.linalg.vector_norm(now - previous)) <= self.tolerance * size:
                break
        return Solution(best, points.encode(best), least, details={"iterations": float(taken), "start_loss": first})

    def _step(self, gram: Float[Tensor, "in in"], diagonal: Float[Tensor, "in"]) -> Float[Tensor, "in"] | float:
        """What the slope is multiplied by, for each input."""
        if not self.precondition:
            return 1.0 / (SAFETY * largest_eigenvalue(gram) or 1.0)
        root = diagonal.rsqrt()
        return 1.0 / (SAFETY * (largest_eigenvalue(gram * root[:, None] * root) or 1.0) * diagonal)


def _row_loss(weight: Tensor, values: Tensor, slope: Tensor) -> Float[Tensor, "out"]:
    """f of each row, from (W - V) G."""
    return torch.einsum("ij,ij->i", slope, weight - values).clamp_min_(0)


def _positive(diagonal: Float[Tensor, "in"]) -> Float[Tensor, "in"]:
    """The diagonal with inputs that were never seen as small as the smallest that was."""
    seen = diagonal > 0
    least = diagonal[seen].min() if bool(seen.any()) else torch.ones((), dtype=diagonal.dtype, device=diagonal.device)
    return torch.where(seen, diagonal, least)
