"""Formats raised greedily, layer by layer, from the cheapest on (POLARON's layer-adaptive policy).

    while the budget allows:  raise the part with the largest  (loss(now) - loss(next)) / (cost(next) - cost(now))

All start with their cheapest option, the first and the last part one step higher where the budget allows; options are climbed in the
order of their cost, and one that loses no less is passed over. The paper describes the strategy only, so the steps are a reconstruction. It
stops when nothing more fits the budget, or, with a `tolerance`, as soon as the summed loss is that small.
Source: Lokhande and others (2025), arXiv 2506.08785.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.base.records import Curve, Share
from thrifty.weights.base import Sharing


@dataclass(frozen=True)
class Polaron(Sharing):
    """tolerance: summed loss at which no part is raised any more; None spends the whole budget."""

    name: ClassVar[str] = "polaron"
    paper: ClassVar[Paper] = Paper(
        "Lokhande, Vishvakarma",
        2025,
        "POLARON: Precision-aware On-device Learning and Adaptive Runtime-cONfigurable AI acceleration",
        "2506.08785",
    )

    tolerance: Annotated[float, Field(ge=0)] | None = None

    def share(self, curves: Sequence[Curve], budget: float) -> Share:
        ladders = [_ladder(curve) for curve in curves]
        level = [0] * len(curves)
        left = budget * (1 + 1e-12) - sum(curve.costs[ladder[0]] for curve, ladder in zip(curves, ladders, strict=True))
        if left < 0:
            raise InputError(f"a budget of {budget:g} is too small: the cheapest options cost {budget - left:g} together")
        loss = sum(curve.losses[ladder[0]] for curve, ladder in zip(curves, ladders, strict=True))
        ends = [part for part in sorted({0, len(curves) - 1}) if len(ladders[part]) > 1]
        waiting = [(*_step(curves[part], ladders[part], 0), part) for part in range(len(curves)) if len(ladders[part]) > 1]
        # the ends come first, whatever they gain
        waiting = [(float("-inf") if part in ends else slope, price, gain, part) for slope, price, gain, part in waiting]
        heapq.heapify(waiting)
        while waiting and (self.tolerance is None or loss > self.tolerance):
            _, price, gain, part = heapq.heappop(waiting)
            if price > left:
                continue
            left, loss, level[part] = left - price, loss - gain, level[part] + 1
            if level[part] + 1 < len(ladders[part]):
                heapq.heappush(waiting, (*_step(curves[part], ladders[part], level[part]), part))
        return self.of(curves, [ladder[step] for ladder, step in zip(ladders, level, strict=True)])


def _ladder(curve: Curve) -> list[int]:
    """The options by cost, each with less loss than the one before."""
    ladder: list[int] = []
    for option in sorted(range(len(curve.costs)), key=lambda option: (curve.costs[option], curve.losses[option], option)):
        if not ladder or curve.losses[option] < curve.losses[ladder[-1]]:
            ladder.append(option)
    return ladder


def _step(curve: Curve, ladder: list[int], level: int) -> tuple[float, float, float]:
    """(minus what the next step saves a unit of cost, its price, what it saves)."""
    one, other = ladder[level], ladder[level + 1]
    price, gain = curve.costs[other] - curve.costs[one], curve.losses[one] - curve.losses[other]
    return -gain / price, price, gain
