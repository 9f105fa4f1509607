"""Remove units by lot: what every other way of choosing has to beat.

    score_u ~ uniform(0, 1)

from the seed of the run and the name of the space, so that the same run draws the same lot.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.structure.base import Pruner, Seen, View


@dataclass(frozen=True)
class RandomUnits(Pruner):
    """Units by lot."""

    name: ClassVar[str] = "random_units"
    calibrated: ClassVar[bool] = False

    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        found = {}
        for units in view.units:
            named = zlib.crc32(f"{seen.seed} {view.block.path} {units.space.name}".encode())  # a generator takes 32 bits of a seed
            found[units.space] = torch.rand(units.count, generator=torch.Generator().manual_seed(named))
        return found
