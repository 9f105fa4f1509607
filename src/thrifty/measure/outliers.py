"""Layers whose error is out of line with that of their peers.

Peers are layers of the same role under the same method and settings. The measure is the robust score of Iglewicz and Hoaglin (1993), How to
Detect and Handle Outliers, on the logarithm of the relative error:

    score = 0.6745 (log e - median log e) / max(median |log e - median log e|, 0.15)

and a layer is named above 3.5. The floor keeps layers that hardly differ from being told apart: with it a layer must be at least twice as
bad as its peers' median. Groups of fewer than four are judged among all layers under the same settings. Apart from any peers, a layer is
named when its error is not a number, or when zeros would have done as well.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

THRESHOLD = 3.5
FLOOR = 0.15
FEWEST = 4


class Measured(Protocol):
    """What is read of a layer: a row of the certificate."""

    name: str
    role: str
    method: str
    bits: float | None
    sparsity: float | None
    relative_error: float | None


@dataclass(frozen=True)
class Outlier:
    """A layer to look at; `reason` is a sentence for people."""

    name: str
    relative_error: float | None
    reason: str


def outliers(layers: Sequence[Measured]) -> list[Outlier]:
    """The layers whose relative error is out of line, worst first."""
    found = [*_broken(layers)]
    usable = [layer for layer in layers if _usable(layer) and layer.relative_error < 1]
    by_role, by_setting = _groups(usable, _role), _groups(usable, _setting)
    for layer in usable:
        peers, whose = by_role[_role(layer)], f"{layer.role or 'all'} layers"
        if len(peers) < FEWEST:
            peers, whose = by_setting[_setting(layer)], "layers under the same settings"
        typical = median(peers)
        spread = max(median(abs(math.log(error) - math.log(typical)) for error in peers), FLOOR)
        score = 0.6745 * (math.log(layer.relative_error) - math.log(typical)) / spread
        if len(peers) >= FEWEST and score > THRESHOLD:
            times = layer.relative_error / typical
            reason = f"relative error {layer.relative_error:.3g} is {times:.1f} times the median {typical:.3g} of the {len(peers)} {whose}"
            found.append(Outlier(layer.name, layer.relative_error, reason))
    return sorted(found, key=lambda outlier: -_rank(outlier.relative_error))


def _broken(layers: Sequence[Measured]) -> list[Outlier]:
    found = []
    for layer in layers:
        error = layer.relative_error
        if error is None or not math.isfinite(error):
            found.append(Outlier(layer.name, error, "its error is not a finite number"))
        elif error >= 1:
            found.append(Outlier(layer.name, error, f"relative error {error:.3g}: a layer of zeros would do as well"))
    return found


def _usable(layer: Measured) -> bool:
    return layer.relative_error is not None and math.isfinite(layer.relative_error) and layer.relative_error > 0


def _groups(layers: Sequence[Measured], key: Callable[[Measured], Any]) -> dict[Any, list[float]]:
    groups: dict[Any, list[float]] = defaultdict(list)
    for layer in layers:
        groups[key(layer)].append(layer.relative_error)
    return groups


def _setting(layer: Measured) -> tuple[Any, ...]:
    bits, sparsity = (None if value is None else round(value, 1) for value in (layer.bits, layer.sparsity))
    return layer.method, bits, sparsity


def _role(layer: Measured) -> tuple[Any, ...]:
    return (layer.role, *_setting(layer))


def _rank(error: float | None) -> float:
    return math.inf if error is None or not math.isfinite(error) else error
