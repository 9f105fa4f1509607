"""Switch off entries of the decay of a state-space mixer that its states hardly use: the A mask of SparseSSM.

    weighted   sum over t of w_t (sum over rows of exp(delta_t A))^2 (sum over rows of h_{t-1}^2)      the public code now
    vote       how many steps t find it among the least of  A_log^2 (sum over rows of h_{t-1}^2)       as first published
    error      sum over rows and t of (c_t (h_t - h'_t))^2,  h' the state with this entry alone off    exact for single entries, ours

The entries with the least go. What is switched off is `unit_decay`, A = -1, which is what a zero in A_log means, or `memoryless`, which
keeps nothing from step to step. Both are values of A_log: shapes, config and loading stay as they are, and so does the speed of the model.
A head of Mamba-2 has one decay for all of its channels and counts as a whole. Fewer states: `sparse_ssm_states`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from thrifty.base.anatomy import Anatomy
from thrifty.base.errors import InputError
from thrifty.base.method import Need, Paper
from thrifty.core.masks import keep_n_of_m, keep_per_row
from thrifty.core.state_space import Mode, Scan, TimeWeights, masked, removal_errors, votes, weighted_scores
from thrifty.models.scans import scan_of
from thrifty.structure.base import Seen, View
from thrifty.structure.rebuild import Plan, Rebuilder, Rebuilt

PAPER = Paper(
    "Tuo, Wang",
    2025,
    "SparseSSM: Efficient Selective Structured State Space Models Can Be Pruned in One-Shot",
    "2506.09613",
)


@dataclass(frozen=True)
class SparseSSM(Rebuilder):
    """sparsity: share of the entries of A_log that are switched off. by, mode: above. pattern: so many of so many neighbouring states stay,
    as (2, 4), whatever sparsity says. weights: how much each step counts in `weighted`."""

    name: ClassVar[str] = "sparse_ssm"
    paper: ClassVar[Paper | None] = PAPER
    needs: ClassVar[frozenset[Need]] = frozenset()

    sparsity: Annotated[float, Field(ge=0, le=1)] = 0.5
    by: Literal["weighted", "vote", "error", "magnitude"] = "weighted"
    mode: Mode = "unit_decay"
    pattern: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    weights: TimeWeights = "power"

    def plan(self, anatomy: Anatomy) -> Plan:
        spaces = [block.state_space for block in anatomy.blocks]
        if not any(spaces):
            raise InputError(f"{anatomy.architecture} has no state-space mixers, whose decays sparse_ssm switches off")
        for space in spaces if self.pattern is not None else ():
            n, m = self.pattern  # type: ignore[misc]
            if n > m or (space is not None and (space.num_heads or space.state_size % m)):
                raise InputError(f"sparse_ssm: the pattern {n} of {m} does not fit the states of {space and space.path}; leave it out")
        return Plan()

    def rebuild(self, view: View, seen: Seen, plan: Plan) -> Rebuilt:
        space = view.block.state_space
        if space is None or not seen.rows.numel():
            return Rebuilt()
        key = view.key(f"{space.path}.A_log")
        a_log = view.tensor(key)
        entries = a_log if a_log.ndim == 2 else a_log[:, None]
        gone = self.gone(scan_in(view, seen), entries)
        return Rebuilt(tensors={key: masked(entries, gone, self.mode).reshape(a_log.shape)})

    def gone(self, scan: Scan, a_log: Float[Tensor, "channels states"]) -> Bool[Tensor, "channels states"]:
        """The entries that are switched off; a_log: [channels, states], or [heads, 1]."""
        worth = self._worth(scan, a_log, round(self.sparsity * a_log.numel()))
        if self.pattern is not None:
            return ~keep_n_of_m(worth, *self.pattern)
        return ~keep_per_row(worth.reshape(1, -1), worth.numel() - round(self.sparsity * worth.numel())).reshape(worth.shape)

    def _worth(self, scan: Scan, a_log: Tensor, count: int) -> Float[Tensor, "channels states"]:
        heads = len(a_log) if a_log.shape != scan.a_log.shape else 0
        size = len(scan.a_log) // heads if heads else 0
        if self.by == "magnitude":
            return a_log.abs()
        if self.by == "error":
            return removal_errors(scan, self.mode, size)
        if self.by == "weighted":
            score = weighted_scores(scan, self.weights)
        else:
            score = -votes(scan, count * scan.a_log.numel() // max(a_log.numel(), 1)).to(torch.float64)
        return score.reshape(heads, -1).sum(1, keepdim=True) if heads else score


def scan_in(view: View, seen: Seen) -> Scan:
    """What goes into the scan of a block's mixer on the calibration rows."""
    return scan_of(*mixer_in(view, seen))


@torch.no_grad()
def mixer_in(view: View, seen: Seen) -> tuple[nn.Module, Float[Tensor, "rows time width"]]:
    """(a block's mixer, what it reads of the calibration rows)."""
    space = view.block.state_space
    assert space is not None
    mixer = view.module.get_submodule(space.path.removeprefix(view.block.path + "."))
    reads: list[Tensor] = []

    def remember(_: object, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        reads.append(inputs[0] if inputs else named["hidden_states"])

    hook = mixer.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        view.forward(seen.rows)
    finally:
        hook.remove()
    return mixer, torch.cat(reads)
