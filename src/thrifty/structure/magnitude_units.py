"""Remove the units whose weights are smallest, taken together.

    score_u = sqrt(sum of w^2 over every entry of every matrix and bias that the unit owns)

Nothing is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.base.method import Paper
from thrifty.structure.base import Pruner, Seen, View


@dataclass(frozen=True)
class MagnitudeUnits(Pruner):
    """Units by the norm of their group."""

    name: ClassVar[str] = "magnitude_units"
    paper: ClassVar[Paper | None] = Paper(
        "Fang, Ma, Song, Mi and Wang", 2023, "DepGraph: Towards Any Structural Pruning", arxiv="2301.12900"
    )
    calibrated: ClassVar[bool] = False

    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        return {units.space: view.norms(units, [m for m in units.members if m.side or units.kind == "experts"]) for units in view.units}
