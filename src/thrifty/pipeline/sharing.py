"""Steps whose sparsity differs by part: a pass over the original model scores every part, then shares are decided, then the walk goes on.

The pass is a walk of its own, as that of `pipeline.mixing`: a stopped run goes on from the blocks that were scored. Calibration rows go
through it only where a score looks at them. Blocks are looked at as they are on disk, before any step rewrites them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from thrifty.base import events
from thrifty.base.anatomy import Block, Linear, Space, Stage
from thrifty.core.angles import turned
from thrifty.core.moments import Moments
from thrifty.models import Source
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.folder import seconds_of
from thrifty.pipeline.mixing import BlockTrial, Trial
from thrifty.pipeline.price import looked_at, looks_at_rows
from thrifty.pipeline.steps import Work
from thrifty.pipeline.walk import Walk
from thrifty.pipeline.watching import watching
from thrifty.weights.base import Treatment
from thrifty.weights.layerwise import Layerwise, Look, Part


def scores_of(walk: Walk, key: str) -> tuple[dict[str, list[float]], float]:
    """(the score of each part that a step shares sparsity among, by `name_of`: one value, none where it is no finite number; the seconds
    that this took, those of stopped attempts included)."""
    aside = walk.aside(Scoring, "sharing")
    if not looks_at_rows(walk.work):
        aside.calibration = None
    records, _, watch = aside.run(key)
    seconds = sum(watch.seconds.values()) + sum(seconds_of(records).values())
    return {name: found for record in records for name, found in record.losses.items()}, seconds


def shared(source: Source, work: Work, scores: Mapping[str, list[float]]) -> Work:
    """The work with the sparsity of every part decided."""
    decided: dict[str, dict[Treatment, float]] = {}
    for number, treatment in enumerate(work.shares):
        budgets: dict[str, list[Part]] = {}
        for block in source.anatomy.blocks:
            for part in work.parts(block, treatment):
                budgets.setdefault(part.budget, []).append(part)
        for path, treatments in work.treatments.items():
            if treatment in treatments:  # what belongs to no part gets what was asked for
                decided.setdefault(path, {})[treatment] = treatment.target.nominal_sparsity
        for budget, parts in budgets.items():
            shares = _shares(treatment, parts, [next(iter(scores[name_of(number, part)]), math.nan) for part in parts])
            for part, share in zip(parts, shares, strict=True):
                decided |= {linear.path: {**decided[linear.path], treatment: share} for linear in part.linears}
            events.note(_said(treatment, budget, parts, shares))
    return work.with_sparsity(decided)


def _shares(treatment: Treatment, parts: list[Part], scores: list[float]) -> list[float]:
    """The share of zeros of each part of a budget."""
    assert isinstance(treatment.allocator, Layerwise)
    sizes = [sum(linear.out_features * linear.in_features for linear in part.linears) for part in parts]
    return treatment.allocator.share(scores, sizes, treatment.target.nominal_sparsity)


def _said(treatment: Treatment, budget: str, parts: list[Part], shares: list[float]) -> str:
    """How far shares go apart."""
    assert isinstance(treatment.allocator, Layerwise)
    which = f"{len(parts)} {budget}" if budget else f"{len(parts)} blocks"
    return f"{treatment.allocator.name}: a share of {min(shares):.3f} to {max(shares):.3f} of the weights of {which} becomes zero"


def name_of(number: int, part: Part) -> str:
    """What a score is kept under. number: of the treatment in `Work.shares`."""
    return f"{number} {part.name}"


@dataclass
class BlockScore(BlockTrial):
    """One block that is looked at. losses: the score of each of its parts for each treatment, by `name_of`."""

    def compress(self, rows: Tensor) -> Tensor:
        """Score the block, and return the rows as it puts them out."""
        if not looked_at(self.block, self.work):
            return self.forward(rows)
        energies, out = self._pass(rows)
        self._score(energies, influence(rows, out))
        return out

    def compress_without_rows(self) -> None:
        """Score the block by its weights."""
        self._score({}, float("nan"))

    def _pass(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(the mean square of each linear's inputs, by path; the rows that leave the block)."""
        seen: dict[str, Moments] = {}

        def keep(stage: Stage, inputs: Tensor) -> None:
            name, taken = stage.reads.name, Moments.of(inputs)
            seen[name] = seen[name].merge(taken) if name in seen else taken

        def pass_over(space: Space, inputs: Tensor) -> None:
            return None

        with watching(self.block, self.linears, self.module, keep, pass_over):
            out = self.forward(rows)
        means = {name: moments.square for name, moments in seen.items() if moments.tokens}
        return {
            linear.path: means[stage.reads.name] for stage in self.block.stages if stage.reads.name in means for linear in stage.linears
        }, out

    def _score(self, energies: Mapping[str, Tensor], changed: float) -> None:
        for number, treatment in enumerate(self.work.shares):
            for part in self.work.parts(self.block, treatment):
                weights, inputs = {}, {}
                for linear in part.linears:
                    for name, piece in pieces(self.block, linear, self.view.read(linear.path)).items():
                        weights[name] = piece
                        if linear.path in energies:
                            inputs[name] = energies[linear.path]
                assert isinstance(treatment.allocator, Layerwise)
                score = treatment.allocator.score(Look(weights, inputs, changed))
                self.losses[name_of(number, part)] = [score] if math.isfinite(score) else []


def pieces(block: Block, linear: Linear, weight: Tensor) -> dict[str, Tensor]:
    """The matrices that lie in one: queries, keys and values, or gate and up, each by a name; any other linear by its path."""
    sizes: list[int] = []
    if linear.role == "gate_up":
        sizes = [linear.out_features // 2] * 2
    elif linear.role == "qkv" and block.attention is not None:
        heads = block.attention
        sizes = [heads.head_dim * count for count in (heads.num_heads, heads.num_key_value_heads, heads.num_key_value_heads)]
    if len(sizes) < 2 or sum(sizes) != linear.out_features:
        return {linear.path: weight}
    return {f"{linear.path}.{number}": piece for number, piece in enumerate(weight.split(sizes))}


def influence(rows: Tensor, out: Tensor) -> float:
    """1 - the mean cosine between vectors that enter a block and those that leave it; NaN where their shapes differ."""
    if rows.shape != out.shape:
        return float("nan")
    return sum(float(turned(one, other).sum()) for one, other in zip(rows, out, strict=True)) / rows[..., 0].numel()


@dataclass
class Scoring(Trial):
    """The pass that looks at every block: nothing is written but scores."""

    visit: Callable[..., BlockRun] = BlockScore
    title: str = "blocks looked at"
