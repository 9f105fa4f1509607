"""One option for each part, so that the summed loss is least and the summed cost stays within a budget.

    min over choice  sum_p loss[p, choice_p]   subject to   sum_p cost[p, choice_p] <= budget

Bits, bytes, seconds, or weights that may stay: costs are just numbers. Small whole costs are solved exactly by a dynamic programme.
Otherwise every part goes down the lower convex hull of its (cost, loss) points, the steepest step of all parts first, which is the best for
the cost that it ends at; what is left of the budget goes into one more move of any part, from this point or from an earlier one where that
gives more. The best of a family of choices that does not depend on the budget is taken, so more budget never loses more. What no choice can
fall below follows from the step that did not fit, taken in part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.errors import InputError

CELLS = 1 << 24
"""Largest table of the dynamic programme: parts times units of cost."""


@dataclass(frozen=True)
class Choice:
    """options: [parts] which option each part gets. loss, cost: their sums. bound: no choice within the budget loses less."""

    options: Int[Tensor, "parts"]
    loss: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far above the least possible loss this may be, at most."""
        return max(0.0, self.loss - self.bound)


def choose(losses: Float[Tensor, "parts options"], costs: Float[Tensor, "parts options"], budget: float) -> Choice:
    """The choice of least loss that costs at most `budget`: exact (gap 0) where costs are small whole multiples of one unit.

    losses: an infinite one is an option that the part does not have. Raises InputError for shapes that differ, costs that are negative or
    not finite, losses that are no numbers, a part without options, and a budget below what the cheapest options cost.
    """
    losses, costs = _checked(losses, costs, budget)
    unit = _unit(costs[losses.isfinite()])
    most = float(torch.where(losses.isfinite(), costs, 0.0).amax(1).sum())
    if unit and len(losses) * (most / unit + 1) <= CELLS:  # whatever the budget is: more of it must not change the method
        return exactly(losses, torch.round(costs / unit).to(torch.int64), math.floor(budget / unit + 1e-9), unit)
    return _along_hulls(losses, costs, budget)


def exactly(losses: Float[Tensor, "parts options"], costs: Int[Tensor, "parts options"], budget: int, unit: float = 1.0) -> Choice:
    """The best choice for whole costs, by a dynamic programme over the parts; costs and budget are counted in `unit`."""
    losses, _ = _checked(losses, costs.to(torch.float64), budget)
    most = int(torch.where(losses.isfinite(), costs, 0).amax(1).sum())
    budget = min(budget, most)
    best = torch.zeros(budget + 1, dtype=torch.float64)
    taken = torch.zeros(len(losses), budget + 1, dtype=torch.int16)
    for part, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        table = torch.full((len(loss), budget + 1), math.inf, dtype=torch.float64)
        for option in range(len(loss)):
            start = int(cost[option])
            if start <= budget and math.isfinite(loss[option]):
                table[option, start:] = best[: budget + 1 - start] + loss[option]
        best, where = table.min(0)
        taken[part] = where.to(torch.int16)
    left, options = budget, []
    for part in range(len(losses) - 1, -1, -1):
        options.append(int(taken[part, left]))
        left -= int(costs[part, options[-1]])
    return _choice(torch.tensor(options[::-1], dtype=torch.int64), losses, costs * unit, None)


def _checked(losses: Tensor, costs: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    losses, costs = losses.detach().to("cpu", torch.float64), costs.detach().to("cpu", torch.float64)
    if losses.ndim != 2 or losses.shape != costs.shape or not losses.numel():
        raise InputError(f"losses and costs must be tables of one shape [parts, options]; got {[*losses.shape]} and {[*costs.shape]}")
    if bool(losses.isnan().any()) or bool((losses == -math.inf).any()):
        raise InputError("a loss is no number; losses must be finite, or infinite where there is no such option")
    have = losses.isfinite()
    if not bool(have.any(1).all()):
        raise InputError(f"part {int((~have.any(1)).nonzero()[0])} has no option with a finite loss")
    if not bool((costs[have].isfinite() & (costs[have] >= 0)).all()):
        raise InputError("a cost is negative or no finite number")
    least = float(torch.where(have, costs, math.inf).amin(1).sum())
    if not budget >= least * (1 - 1e-12):
        raise InputError(f"a budget of {budget:g} is too small: the cheapest options cost {least:g} together")
    return losses, torch.where(have, costs, math.inf)


def _unit(costs: Tensor) -> float:
    """The largest number that all costs are whole multiples of; 0 where they are no whole numbers."""
    whole = costs.round()
    if not bool((whole == costs).all()) or float(whole.max()) >= 2**53:
        return 0.0
    return float(math.gcd(*(int(cost) for cost in whole.unique()))) or 1.0


def _choice(options: Tensor, losses: Tensor, costs: Tensor, bound: float | None) -> Choice:
    rows = torch.arange(len(options))
    loss, cost = float(losses[rows, options].sum()), float(costs[rows, options].sum())
    return Choice(options, loss, cost, loss if bound is None else min(bound, loss))


# -- along the hulls ---------------------------------------------------------------------------------------------------


def _along_hulls(losses: Tensor, costs: Tensor, budget: float) -> Choice:
    room = budget * (1 + 1e-12)
    start, steps = _steps(losses, costs)
    rows = torch.arange(len(losses))
    spent = [float(costs[rows, start].sum())]
    lost = [float(losses[rows, start].sum())]
    for _, _, gain, price in steps:
        spent.append(spent[-1] + price)
        lost.append(lost[-1] - gain)
    taken = max(index for index, cost in enumerate(spent) if cost <= room)
    bound = lost[taken] - steps[taken][2] * (room - spent[taken]) / steps[taken][3] if taken < len(steps) else lost[taken]
    options = start.clone()
    for part, after, _, _ in steps[:taken]:
        options[part] = after
    best, least = options.clone(), lost[taken]
    for option in range(losses.shape[1]):  # the same option for all
        if float(costs[:, option].sum()) <= room and float(losses[:, option].sum()) < least:
            best, least = torch.full_like(options, option), float(losses[:, option].sum())
    before = _before(start, steps)
    for index in range(taken, -1, -1):
        now = losses[rows, options]
        gains = now[:, None] - losses
        fits = spent[index] - costs[rows, options][:, None] + costs <= room
        gains = torch.where(fits, gains, -math.inf)
        move = int(gains.argmax())
        if lost[index] - float(gains.flatten()[move]) < least:
            best, least = options.clone(), lost[index] - float(gains.flatten()[move])
            best[move // losses.shape[1]] = move % losses.shape[1]
        # no single move from an earlier point, were it free, can do better than from a later one
        if index == 0 or lost[index] - float((now - losses.amin(1)).max()) >= least:
            break
        options[steps[index - 1][0]] = before[index - 1]
    return _choice(best, losses, costs, bound)


def _steps(losses: Tensor, costs: Tensor) -> tuple[Tensor, list[tuple[int, int, float, float]]]:
    """(the cheapest option of each part, the steps down all hulls: (part, option after, loss saved, cost added), steepest first)."""
    start, steps = [], []
    for part, (loss, cost) in enumerate(zip(losses.tolist(), costs.tolist(), strict=True)):
        hull = _hull(loss, cost)
        start.append(hull[0])
        for one, other in pairwise(hull):
            steps.append((part, other, loss[one] - loss[other], cost[other] - cost[one]))
    # a hull's own steps get flatter, so their order is kept
    return torch.tensor(start), sorted(steps, key=lambda step: (-step[2] / step[3], step[0], step[3]))


def _hull(loss: list[float], cost: list[float]) -> list[int]:
    """The options on the lower convex hull, from the cheapest on, each with less loss than the one before."""
    hull: list[int] = []
    for option in sorted((o for o in range(len(loss)) if math.isfinite(loss[o])), key=lambda o: (cost[o], loss[o], o)):
        if hull and loss[option] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], option, loss, cost):
            hull.pop()
        hull.append(option)
    return hull


def _above(first: int, middle: int, last: int, loss: list[float], cost: list[float]) -> bool:
    """Whether the middle point lies on or above the line through the others."""
    through = (loss[first] - loss[last]) * (cost[middle] - cost[first])
    return (loss[first] - loss[middle]) * (cost[last] - cost[first]) <= through


def _before(start: Tensor, steps: list[tuple[int, int, float, float]]) -> list[int]:
    """Of each step, the option that its part had before."""
    held, before = start.tolist(), []
    for part, after, _, _ in steps:
        before.append(held[part])
        held[part] = after
    return before
