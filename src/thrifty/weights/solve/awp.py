"""Projected gradient descent on the output error: activation-aware pruning and quantization (AWP).

    min over V in the target of  f(V) = tr((W - V) G (W - V)^T);    V <- Proj(V + (W - V) G D^-1),   D = rho diag(G)

rho bounds the eigenvalues of diag(G)^-1/2 G diag(G)^-1/2 from above, so that D - G is positive semidefinite and no step raises f; Proj is
the nearest point in the norm of D: top-k of |v_ij| sqrt(G_jj) for masks, plain rounding on a fixed grid. `precondition: false` takes one
step length for all inputs, 1 / lambda_max(G), and the plain nearest point. The best iterate is returned, so that a result costs no more
than its start: the target's nearest point weighed by diag(G) (Wanda for masks, rounding for grids), or what `obs` reaches on the same grid
where that costs less. On a grid most steps are too short to leave the start, so what is gained there is mostly the start's. The exact
projection onto few non-zeros on a grid (`both`) makes a ramp of the sparsity needless. Steps of inputs that were hardly seen are bounded:
rounding errors of the slope would be all that moved their weights.
Source: Liu, Koike-Akino, Wang, Mansour and Brand (2025), arXiv 2506.10205.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.linalg import largest_eigenvalue, seen_diagonal
from thrifty.weights.base import Points, Solver, Target
from thrifty.weights.solve.obs import OBS


@dataclass(frozen=True)
class AWP(Solver):
    """iterations: largest number of steps. tolerance: stop when a step moves less than this share of ||W||. precondition, start: above."""

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
    start: Literal["nearest", "obs"] = "obs"

    def accepts(self, target: Target) -> None:
        if not target.by_entry:
            raise InputError(f"awp cannot be used with {target.name}, where entries share codes; take by: aqlm, obs or round")

    def solve(self, problem: Problem, target: Target) -> Solution:
        weight, gram = problem.weight, problem.gram.to(problem.weight.dtype)
        metric = seen_diagonal(gram)
        points = target.fit(weight, metric if self.precondition else None)
        step = self._step(gram, metric)
        now = self._first(weight, gram, points, target)
        slope = (weight - now) @ gram
        best, least = now, _row_loss(weight, now, slope)
        first, size = float(least.sum()), float(torch.linalg.vector_norm(weight))
        sound = math.isfinite(first)
        taken = 0
        while taken < self.iterations and sound:
            taken += 1
            previous, now = now, points.project(now + slope * step)
            slope = (weight - now) @ gram
            best, least = _better(now, _row_loss(weight, now, slope), best, least, target)
            if float(torch.linalg.vector_norm(now - previous)) <= self.tolerance * size:
                break
        said = f"{problem.name}: the Gram matrix holds values that are not finite, so every weight was rounded to the nearest point"
        details = {"iterations": float(taken), "start_loss": first}
        return Solution(best, points.encode(best), least, warnings=() if sound else (said,), details=details)

    def _first(self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], points: Points, target: Target) -> Tensor:
        """The point to start from."""
        starts = [points.project(weight), points.project(target.fit(weight, gram.diagonal()).project(weight))]
        swept = OBS(act_order=not target.run).reach(weight, gram, points, target.run) if self.start == "obs" else None
        if swept is not None:
            starts.append(swept.values)
        best, least = starts[0], _row_loss(weight, starts[0], (weight - starts[0]) @ gram)
        for values in starts[1:]:
            best, least = _better(values, _row_loss(weight, values, (weight - values) @ gram), best, least, target)
        return best

    def _step(self, gram: Float[Tensor, "in in"], metric: Float[Tensor, "in"]) -> Float[Tensor, "in"] | float:
        """What the slope is multiplied by, for each input."""
        if not self.precondition:
            return 1.0 / (float(largest_eigenvalue(gram)) or 1.0)
        root = torch.where(metric > 0, metric.rsqrt(), 0.0)
        return root.square() / (float(largest_eigenvalue(gram * root[:, None] * root)) or 1.0)


def _better(values: Tensor, loss: Tensor, best: Tensor, least: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """(values, loss of each row) of the better of two points, row by row unless the rows belong together; the second one among equals."""
    better = (loss.sum() < least.sum()).expand_as(loss) if target.joint_rows else loss < least
    return torch.where(better[:, None], values, best), torch.where(better, loss, least)


def _row_loss(weight: Tensor, values: Tensor, slope: Tensor) -> Float[Tensor, "out"]:
    """f of each row, from (W - V) G."""
    return torch.einsum("ij,ij->i", slope, weight - values).clamp_min_(0)
