"""Optimal brain surgeon by columns: one input after the other is fixed, and the later ones make up for its error.

    min over V in the target of  tr((W - V) H (W - V)^T),    H = gram + damping * mean(diag gram) * I = R R^T,  R upper triangular

With the factor R the loss is a sum over inputs, sum_j R_jj^2 sum_i (t_ij - v_ij)^2, where  t_j = w_j + sum_{i<j} (w_i - v_i) R_ij / R_jj
depends only on what was fixed before; v_j is the point of the target nearest to t_j. On a grid this is GPTQ (Frantar, Ashkboos, Hoefler and
Alistarh 2022, arXiv 2210.17323), on a mask SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): their factor U of H^-1 is R^-1, which
is never formed here. `act_order` takes the inputs by falling diag H; grids belong to the original groups, so nothing more has to be stored.
Where the Gram matrix has no factor the damping rises tenfold until it has one, and that is said. Inputs that were never seen are the first
that a mask gives up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.base.records import Problem, Solution
from thrifty.core.fast_grids import fixed_panel
from thrifty.core.linalg import row_forms, upper_factor
from thrifty.weights.base import Points, Solver, Target

PANEL = 32
"""Inputs that are walked through one by one before their errors are handed on as one product."""


class Reached(NamedTuple):
    """A point of a set, its losses as in `Solution`, and the damping that it took."""

    values: Float[Tensor, "out in"]
    row_loss: Float[Tensor, "out"]
    column_loss: Float[Tensor, "in"]
    damping: float


@dataclass(frozen=True)
class OBS(Solver):
    """damping: share of the mean diagonal that is added to the diagonal. block_size: inputs whose errors reach the rest as one product.

    act_order: fix the inputs with the largest activations first.
    """

    name: ClassVar[str] = "obs"
    paper: ClassVar[Paper] = Paper(
        "Frantar, Ashkboos, Hoefler, Alistarh",
        2022,
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        "2210.17323",
    )

    act_order: bool = False
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    block_size: Annotated[int, Field(ge=1)] = 128

    def accepts(self, target: Target) -> None:
        if self.act_order and target.run:
            raise InputError(f"obs: act_order cannot be used with {target.name}, which decides neighbouring inputs together")

    def solve(self, problem: Problem, target: Target) -> Solution:
        weight, gram = problem.weight, problem.gram.to(problem.weight.dtype)
        # Later inputs make up for a part of each error, so an input counts less in the fit of the grids than its energy says: its root
        # gave the least loss on real layers, against the energy itself and against none.
        points = target.fit(weight, gram.diagonal().sqrt())
        reached = self.reach(weight, gram, points, target.run)
        if reached is None:
            points = target.fit(weight, gram.diagonal())
            values = points.project(weight)
            said = f"{problem.name}: the Gram matrix cannot be factorized, so every weight was rounded to the nearest point"
            return Solution(values, points.encode(values), row_forms(weight - values, gram).clamp_min(0), warnings=(said,))
        warnings = self.warnings(problem.name, reached)
        return Solution(reached.values, points.encode(reached.values), reached.row_loss, reached.column_loss, warnings)

    def warnings(self, name: str, reached: Reached) -> tuple[str, ...]:
        """What a certificate says of how a point was reached; name: of the linear."""
        if reached.damping <= self.damping:
            return ()
        return (f"{name}: the Gram matrix could be factorized only with damping {reached.damping:.3g}",)

    def reach(self, weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], points: Points, run: int) -> Reached | None:
        """A point of a set that is already fitted; run: see `Target`. None when no damping makes a factor of the Gram matrix."""
        order = _order(gram, self.act_order)
        factor, share = _factor(gram, order, self.damping)
        if factor is None:
            return None
        seen = gram.diagonal() > 0
        sweep = _Sweep(_moved(weight.T.clone(memory_format=torch.contiguous_format), order), factor, order, seen, points)
        together = run or (gram.shape[0] if points.adaptive else 0)
        sweep.run(self.block_size, together)
        added = share * _mean_diagonal(gram)
        row_loss = (sweep.row_loss - added * torch.linalg.vecdot(sweep.error, sweep.error, dim=0)).clamp_min(0)
        undone = None if order is None else torch.argsort(order)
        values, column_loss = sweep.values, _moved(sweep.column_loss, undone)
        del sweep, factor  # as large as the matrix each
        # Rounding and masks leave -0 where a negative value became zero; a sum makes equal results equal in their bytes.
        return Reached(_moved(values, undone).T.contiguous().add_(0.0), row_loss, column_loss, share)


def _order(gram: Float[Tensor, "in in"], act_order: bool) -> Tensor | None:
    """The inputs in the order in which they are fixed; None for the order they are in."""
    return torch.sort(gram.diagonal(), descending=True, stable=True).indices if act_order else None


def _moved(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows[order]


def _factor(gram: Float[Tensor, "in in"], order: Tensor | None, damping: float) -> tuple[Tensor | None, float]:
    """(the factor of the damped matrix in this order, the damping); it rises tenfold until there is a factor, to 1 at most."""
    share = damping
    while share <= 1:
        damped = gram.clone(memory_format=torch.contiguous_format) if order is None else gram.index_select(0, order).index_select(1, order)
        damped.diagonal().add_(share * _mean_diagonal(gram))
        factor = upper_factor(damped)
        if factor is not None:
            return factor, share
        share *= 10
    return None, 0.0


def _mean_diagonal(gram: Float[Tensor, "in in"]) -> float:
    """What damping is a share of; 1 where no input was ever seen."""
    return float(gram.diagonal().mean()) or 1.0


class _Sweep:
    """One pass over the inputs. Matrices are transposed, [in, out], so that an input is a contiguous row.

    weight: turns into the error, input by input. seen: which inputs calibration data had.
    """

    def __init__(
        self,
        weight: Float[Tensor, "in out"],
        factor: Float[Tensor, "in in"],
        order: Tensor | None,
        seen: Bool[Tensor, "in"],
        points: Points,
    ) -> None:
        self.error, self.factor, self.seen, self.points, self.cells = weight, factor, seen, points, points.cells()
        self.columns = torch.arange(weight.shape[0], device=weight.device) if order is None else order
        self.order: list[int] = self.columns.tolist()
        self.inverse: list[float] = factor.diagonal().reciprocal().tolist()
        self.values = torch.empty_like(weight)
        self.row_loss = torch.zeros_like(weight[0])
        self.column_loss = torch.zeros_like(weight[:, 0])

    def run(self, block_size: int, together: int) -> None:
        """Fix all inputs, in blocks; `together` inputs are entered at once where the set chooses as it goes."""
        width = len(self.order)
        entered = together or PANEL
        block = max(entered, block_size // entered * entered)
        for start in range(0, width, block):
            stop = min(start + block, width)
            carried = self.factor[:start, start:stop].T @ self.error[:start]
            for first in range(start, stop, entered):
                last = min(first + entered, stop)
                part = carried[first - start : last - start]
                part.addmm_(self.factor[start:first, first:last].T, self.error[start:first])
                if self.points.adaptive:
                    self._enter(first, last, part)
                for near in range(first, last, PANEL):
                    far = min(near + PANEL, last)
                    piece = part[near - first : far - first]
                    piece.addmm_(self.factor[first:near, near:far].T, self.error[first:near])
                    self._panel(near, far, piece)

    def _enter(self, first: int, last: int, carried: Float[Tensor, "n out"]) -> None:
        """Show the set what inputs first .. last would be if nothing bound them."""
        factor, columns = self.factor[first:last, first:last], self.columns[first:last]
        free = self.error[first:last] + torch.linalg.solve_triangular(factor.T, carried, upper=False)
        self.points.enter(free.T, columns, torch.where(self.seen[columns], factor.diagonal().square(), 0.0))

    def _panel(self, first: int, last: int, carried: Float[Tensor, "n out"]) -> None:
        """Fix inputs first .. last one by one; carried: sum over the earlier inputs i of error_i R_ij."""
        column_loss = None
        if self.cells is not None:
            error, factor, inputs = self.error[first:last], self.factor[first:last, first:last], self.columns[first:last]
            column_loss = fixed_panel(error, carried, self.values[first:last], factor, self.cells, inputs, self.row_loss)
        if column_loss is None:
            column_loss = self._one_by_one(first, last, carried)
        self.column_loss[first:last] = column_loss

    def _one_by_one(self, first: int, last: int, carried: Float[Tensor, "n out"]) -> Float[Tensor, "n"]:
        """`core.fast_grids.fixed_panel` in plain torch."""
        weight, factor = self.error[first:last], self.factor[first:last, first:last]
        rest = torch.empty_like(weight)
        # Views made together: one by one they would take as long as the arithmetic.
        rows = zip(weight.unbind(), carried.unbind(), self.values[first:last].unbind(), rest.unbind(), factor.unbind(), strict=True)
        for place, (error, behind, value, aim, ahead) in enumerate(rows):
            index = first + place
            torch.add(error, behind, alpha=self.inverse[index], out=aim)
            self.points.snap(aim, self.order[index], value)
            error.sub_(value)
            aim.sub_(value)
            if index + 1 < last:
                carried[place + 1 :].addr_(ahead[place + 1 :], error)
        rest.mul_(rest)  # `square_` and sums over a dimension take several times as long
        counts = factor.diagonal().square()
        self.row_loss.addmv_(rest.T, counts)
        return counts * (rest @ torch.ones_like(self.row_loss))
