"""Which weights stay and what they become, found together by splitting the problem in two: ALPS.

    min over V with the zeros of the target  tr((W - V) G (W - V)^T)

In coordinates in which every input has size 1, G' = D^-1 G D^-1 and W' = W D with D = diag(G)^1/2, one half follows the inputs, the other
has the zeros, and U is what they still disagree by (ADMM):

    B <- (W' G' - U + rho Z) (G' + rho I)^-1,    Z <- Proj(B + U / rho),    U <- U + rho (B - Z)

rho rises every third turn, faster while more of the mask changes (by 1.3 above a tenth of what stays, by 1.2 above a 200th, else by 1.1),
and the search ends when the mask has not changed in three turns. What stays then takes the values that lose least, by conjugate gradients
(`core.back_solve`): from the weights, which are the answer where nothing goes, and to a small residual, instead of ten steps from Z as
published. So do the weights that Wanda would leave; of both, the better one counts, row by row where rows do not compete: on inputs that
have little to do with each other the search may end elsewhere than at the best mask.
Source: Meng, Behdin, Wang and Mazumder (2024), arXiv 2406.07831.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.back_solve import back_solve
from thrifty.core.finite import all_finite
from thrifty.core.linalg import row_forms
from thrifty.core.masks import apply_mask
from thrifty.weights.base import Solver, Target, check_masks

TURNS = 3
"""Turns between looks at the mask."""

RISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""What rho is multiplied by where more than this share of what stays has changed."""

UNSEEN = 1e-12
"""What an input that was never seen counts, as a share of the mean of all."""


@dataclass(frozen=True)
class ALPS(Solver):
    """iterations: turns at most. rho: of the first turn. damping: share of the mean diagonal that is added to it for the search. steps,
    tolerance: of conjugate gradients; a row is done when its residual is this part of the first."""

    name: ClassVar[str] = "alps"
    paper: ClassVar[Paper] = Paper(
        "Meng, Behdin, Wang, Mazumder",
        2024,
        "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
        "2406.07831",
    )

    iterations: Annotated[int, Field(ge=1, le=10_000)] = 300
    rho: Annotated[float, Field(gt=0)] = 0.1
    damping: Annotated[float, Field(ge=0, le=1)] = 0.01
    steps: Annotated[int, Field(ge=1, le=10_000)] = 100
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-4

    def accepts(self, target: Target) -> None:
        check_masks(target, self.name)

    def solve(self, problem: Problem, target: Target) -> Solution:
        weight, gram = problem.weight, problem.gram.to(problem.weight.dtype)
        if not all_finite(gram):
            points = target.fit(weight)
            values = points.project(weight)
            said = f"{problem.name}: the Gram matrix holds values that are not finite, so the largest weights stay"
            return Solution(values, points.encode(values), row_forms(weight - values, gram), warnings=(said,))
        mask, turns = self._search(weight, gram, target)
        wanda = target.fit(weight, gram.diagonal()).project(weight) != 0
        (values, loss), (other, more) = (self._solved(weight, gram, stays) for stays in (mask, wanda))
        worse = (more.sum() < loss.sum()).expand_as(loss) if target.joint_rows else more < loss
        values, loss = torch.where(worse[:, None], other, values), torch.where(worse, more, loss)
        return Solution(values, target.fit(values).encode(values), loss, details={"iterations": float(turns)})

    def _solved(self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], mask: Bool[Tensor, "out in"]) -> tuple[Tensor, Tensor]:
        """(the best values where the mask lets weights stay, the loss of each row)."""
        damping = self.damping * float(gram.diagonal().mean())
        values = back_solve(weight, gram, apply_mask(weight, mask), mask, damping, self.steps, self.tolerance).values
        return values, row_forms(weight - values, gram).clamp_min(0)

    def _search(self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], target: Target) -> tuple[Bool[Tensor, "out in"], int]:
        """(which weights stay, turns)."""
        mean = float(gram.diagonal().mean())
        size = (gram.diagonal() + self.damping * mean).clamp_min(UNSEEN * mean or 1.0).sqrt()
        normal = gram / size / size[:, None]
        normal.diagonal().fill_(1)
        values, basis = torch.linalg.eigh(normal)
        scaled = weight * size
        points, pulled = target.fit(scaled), scaled @ normal
        zeroed, apart, rho = points.project(scaled), torch.zeros_like(scaled), self.rho
        kept, turn = zeroed != 0, 0
        while turn < self.iterations:
            turn += 1
            free = (pulled - apart + rho * zeroed) @ basis / (values.clamp_min(0) + rho) @ basis.T
            zeroed = points.project(free + apart / rho)
            apart += rho * (free - zeroed)
            if turn % TURNS == 0:
                now = zeroed != 0
                changed = int((now != kept).sum()) / max(1, int(now.sum()))
                if changed == 0:
                    break
                kept, rho = now, rho * next(rise for share, rise in RISES if changed > share)
        return zeroed != 0, turn
