"""Remove the units whose outputs fluctuate least, and give back what they put out on average: FLAP.

    score_j = var(x_j) ||W[:, j]||_2^2,   bias += sum over removed j of mean(x_j) W[:, j]

x is what the reading matrix W gets. In attention the score is squared. Scores are standardized within each space, and a group of heads
counts as the mean over its channels. A removed channel that never varies costs nothing once its mean is in the bias; where the architecture
has no place for a bias, the mean is lost and a warning says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Space, UnitKind, Units
from thrifty.base.method import Paper
from thrifty.base.records import Cut
from thrifty.core.cut import indices, staying
from thrifty.core.moments import Moments
from thrifty.structure.base import Change, Pruner, Seen, View


@dataclass(frozen=True)
class Flap(Pruner):
    """Units by fluctuation. compensate_bias: whether the means of what is removed are added to a bias."""

    name: ClassVar[str] = "flap"
    paper: ClassVar[Paper | None] = Paper(
        "An, Zhao, Yu, Tang and Wang", 2023, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", arxiv="2312.11983"
    )
    scores: ClassVar[tuple[UnitKind, ...]] = ("neurons", "heads", "channels")

    compensate_bias: bool = True

    @property
    def adds_bias(self) -> bool:
        return self.compensate_bias

    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        return {units.space: _fluctuation(view, units, seen) for units in view.units}

    def compensate(self, view: View, cuts: Sequence[Cut], seen: Seen) -> Change:
        biases: dict[str, Tensor] = {}
        for item in cuts if self.compensate_bias else ():
            for member in view.columns(item.units):
                path = member.linear
                assert path is not None
                moments = _inputs(view, path, seen)
                if moments is not None and view.holds_bias(path):
                    gone = indices(member, item.units.count)[~staying(item.units, item.keep)].flatten()
                    before = biases[path] if path in biases else view.bias(path)
                    biases[path] = before + view.read(path)[:, gone] @ moments.mean[gone]
        return Change(biases=biases)


def _fluctuation(view: View, units: Units, seen: Seen) -> Float[Tensor, "count"]:
    total = torch.zeros(units.count)
    for member in view.columns(units):
        assert member.linear is not None
        moments = _inputs(view, member.linear, seen)
        energy = view.read(member.linear).square().sum(0)
        score = energy if moments is None else moments.variance * energy
        total += _standard(score.square() if units.kind == "heads" else score)[indices(member, units.count)].mean(1)
    return total


def _standard(score: Float[Tensor, "width"]) -> Float[Tensor, "width"]:
    return (score - score.mean()) / score.std().clamp_min(torch.finfo(score.dtype).tiny)


def _inputs(view: View, path: str, seen: Seen) -> Moments | None:
    """Moments of what a linear reads; None where no token reached it."""
    stage = next(stage for stage in view.block.stages if any(linear.path == path for linear in stage.linears))
    found = seen.inputs.get(stage.reads.name)
    return found if found is not None and found.tokens else None
