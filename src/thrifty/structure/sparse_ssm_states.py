"""Remove the places of the state of a Mamba mixer, in all of its channels alike, that its outputs need least.

    vote    how many steps t find place n among the least of  sum over channels d of A_log[d, n]^2 (sum over rows of h_{t-1}[d, n]^2)
    error   sum over rows, t and channels of (c_t[n] h_t[d, n])^2,  what the outputs lose when place n goes

`vote` is SparseSSM's structured form; `error` (ours) is exact for each place alone. The result has a smaller state in its config, and rows
of the projections that make B and C are gone: less memory and fewer operations for every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Space, UnitKind
from thrifty.base.method import Paper
from thrifty.core.state_space import state_errors, state_votes
from thrifty.structure.base import Pruner, Seen, View
from thrifty.structure.sparse_ssm import PAPER, scan_in


@dataclass(frozen=True)
class SparseSSMStates(Pruner):
    """by: what a place of the state is worth."""

    name: ClassVar[str] = "sparse_ssm_states"
    paper: ClassVar[Paper | None] = PAPER
    scores: ClassVar[tuple[UnitKind, ...]] = ("states",)

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    cut: tuple[UnitKind, ...] = ("states",)
    by: Literal["vote", "error"] = "vote"

    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        found = {}
        for units in view.units:
            scan = scan_in(view, seen)
            worth = state_errors(scan) if self.by == "error" else -state_votes(scan, units.count - self.kept(units))
            found[units.space] = worth.to(torch.float32)
        return found
