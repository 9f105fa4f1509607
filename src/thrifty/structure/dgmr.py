"""Keep the neurons whose incoming weights span the most, and fold what they tell of the others into the next matrix: DGMR.

    next pick = argmax over neurons i of || w_i - its projection onto the span of the picks ||_2

w_i is everything that writes neuron i: its row, for a gated MLP that of the gate and that of the values side by side. Once the picks span
everything, the next round begins with the full rows of the rest. Among neurons that are nearly the same one stays, where a choice by norm
would keep all of them or none. The picks look at weights alone; `by: weighted` multiplies each row by the norm of what reads its neuron,
`by: activations` picks among what the neurons put out on calibration rows, and `by: outputs` (ours, too) is greedy for what `refit` leaves:
the next neuron is the one with which the fit gains most. `refit` gives the reading matrix the least-squares solution of

    min over W', b of  E || W h - W' h_kept - b ||^2

(b only where there is a bias already), for where nothing is trained. What the paper recovers with is `distill_features`, after it in one
chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Space, UnitKind, Units
from thrifty.base.method import Need, Paper
from thrifty.base.records import Cut
from thrifty.core.selection import absorb, best_readable, pivots
from thrifty.core.statistics import Statistics
from thrifty.structure.base import Change, Pruner, Seen, View


@dataclass(frozen=True)
class DGMR(Pruner):
    """by: which vectors of the neurons are to span the most. refit: whether the next matrix makes up for what is gone. damp: how hard it is
    held to what it was, as a share of the neurons' mean energy."""

    name: ClassVar[str] = "dgmr"
    paper: ClassVar[Paper | None] = Paper(
        "Shen, Hu, Bi, Wang, Tian, Wang",
        2025,
        "Diversity-Guided MLP Reduction for Efficient Large Vision Transformers",
        arxiv="2506.08591",
    )
    scores: ClassVar[tuple[UnitKind, ...]] = ("neurons",)
    needs: ClassVar[frozenset[Need]] = frozenset({"gram"})

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    cut: tuple[UnitKind, ...] = ("neurons",)
    by: Literal["weights", "weighted", "activations", "outputs"] = "weights"
    refit: bool = True
    damp: Annotated[float, Field(ge=0)] = 1e-4

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        return self.refit or self.by in ("activations", "outputs")

    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        return {units.space: self._ranks(view, units, seen) for units in view.units}

    def _ranks(self, view: View, units: Units, seen: Seen) -> Float[Tensor, "count"]:
        """How many neurons come after each one in the order of the picks; those that are not to stay, 0."""
        kept = self.kept(units)
        score = torch.zeros(units.count)
        score[self._picks(view, units, seen, kept)] = torch.arange(units.count, units.count - kept, -1, dtype=torch.float32)
        return score

    def _picks(self, view: View, units: Units, seen: Seen, kept: int) -> Int[Tensor, "kept"]:
        found = seen.grams.get(units.space.name)
        readers = [member.linear for member in view.columns(units) if member.linear is not None]
        if self.by == "outputs" and found is not None and found.tokens:
            return best_readable(torch.cat([view.read(path) for path in readers]), _gram(found), kept)
        return pivots(self._products(view, units, seen), kept)

    def _products(self, view: View, units: Units, seen: Seen) -> Float[Tensor, "count count"]:
        found = seen.grams.get(units.space.name)
        if self.by == "activations" and found is not None and found.tokens:
            return _gram(found)
        rows = torch.cat([view.values(units, member) for member in view.rows(units)], 1).to(torch.float64)
        if self.by == "weighted":
            rows = rows * view.norms(units, view.columns(units))[:, None]
        return rows @ rows.T

    def compensate(self, view: View, cuts: Sequence[Cut], seen: Seen) -> Change:
        return refitted(view, cuts, seen, self.damp) if self.refit else Change()


def refitted(view: View, cuts: Sequence[Cut], seen: Seen, damp: float) -> Change:
    """What reads the neurons that stay, fitted to what it put out when all of them were there; for cuts of neurons by whatever method."""
    weights: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for item in cuts:
        found = seen.grams.get(item.units.space.name)
        for member in view.columns(item.units) if found is not None and found.tokens else ():
            path = member.linear
            assert path is not None and found is not None
            matrix = view.read(path)
            mean = seen.inputs[item.units.space.name].mean if view.holds_bias(path) else None
            fitted, bias = absorb(matrix, _gram(found), item.keep, mean, damp)
            weights[path] = matrix.index_copy(1, item.keep, fitted)
            if mean is not None:
                biases[path] = view.bias(path) + bias
    return Change(weights, biases)


def _gram(found: Statistics) -> Float[Tensor, "count count"]:
    return found.gram.to("cpu")
