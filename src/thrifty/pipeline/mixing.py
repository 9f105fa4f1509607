"""Steps that choose among targets: a pass over the model measures what every choice loses, then the choice is made, then the walk goes on.

The pass is a walk of its own: calibration rows go through the original blocks, and each finished block is kept under its content key, so a
stopped run goes on here as anywhere. A choice is judged by what it alone changes in the rows that leave its block: by what that does to the
model's predictions, which were followed back to there once (`pipeline.weighing`), or as a share of the rows' sum of squares (see
`weights.preset.mix`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from thrifty.base import events
from thrifty.base.anatomy import Block, Linear, Stage
from thrifty.base.errors import InputError
from thrifty.base.records import Curve
from thrifty.core.budget import choose
from thrifty.models import Call, Source, set_weight
from thrifty.pipeline.block import BlockRun, alike, solve_all
from thrifty.pipeline.folder import BlockRecord, seconds_of
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.price import active
from thrifty.pipeline.steps import Work
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.streams import Streams
from thrifty.pipeline.walk import Walk
from thrifty.pipeline.weighing import by_loss, direction, followed_back, rows_followed
from thrifty.weights.preset.mix import Mix

UNREACHED = 1e-9
"""Weight of a matrix's own relative error beside what it changes in the rows: it decides only where no row reaches the matrix."""

Judge = Callable[[Tensor], float]
"""judge(change): what it costs that the rows leave a block changed by this."""


# -- before anything is computed ---------------------------------------------------------------------------------------


def foreseen(source: Source, work: Work, form: type[Packing] = Packing) -> Packing:
    """How the result will be stored in the format `form`, where the choices make the largest file that their budgets allow.

    Raises InputError for a budget that the cheapest choices exceed, and where no reader would read a file with all the targets.
    """
    largest: dict[str, int] = {}
    mixed: dict[str, int] = {}
    for mix, linears in _budgets(source, work).items():
        by_loss(source, mix)  # refused here, where it cannot be
        spent = costs(source, work, mix, linears, form)
        stored = torch.stack([_stored(source, work, linears, option, form) for option in range(len(mix.into))], dim=1)
        found = choose(stored.max() - stored, spent, _allowed(mix, linears, spent))
        largest |= {linear.path: int(option) for linear, option in zip(linears, found.options, strict=True)}
        mixed |= {linear.path: position % len(mix.into) for position, linear in enumerate(linears)}
    if mixed:
        form.decide(source, work.with_options(mixed))  # every target somewhere: refused here, not after an hour
    return form.decide(source, work.with_options(largest))


def costs(source: Source, work: Work, mix: Mix, linears: list[Linear], form: type[Packing] = Packing) -> Tensor:
    """[linears, options] what each choice costs: bits for the units `bits` and `bytes`, times of multiplications for `time`."""
    if mix.unit == "bytes":
        return torch.stack([8 * _stored(source, work, linears, option, form) for option in range(len(mix.into))], dim=1)
    if mix.unit == "bits":
        rows = [[target.outline(linear.out_features, linear.in_features).stored_bits for target in mix.into] for linear in linears]
    else:
        blocks = {linear.path: block for block in source.anatomy.blocks for linear in block.linears}
        sizes = [_size(linear) * active(blocks[linear.path], linear) for linear in linears]
        rows = [[size / speed for speed in mix.speeds] for size in sizes]
    return torch.tensor(rows, dtype=torch.float64)


def _stored(source: Source, work: Work, linears: list[Linear], option: int, form: type[Packing]) -> Tensor:
    """[linears] bytes of each matrix in the file when all have this option: readers decide by the whole file what may be packed."""
    held = form.decide(source, work.with_options({linear.path: option for linear in linears}))
    sizes = []
    for linear in linears:
        if linear.path not in held.schemes:
            sizes.append(_size(linear) * source.tensors[linear.source].dtype.itemsize)
        else:
            sizes.append(held.stored_bytes(linear))
    return torch.tensor(sizes, dtype=torch.float64)


def _budgets(source: Source, work: Work) -> dict[Mix, list[Linear]]:
    """The linears that share a budget, in the order of the model."""
    found: dict[Mix, list[Linear]] = {}
    for linear in source.anatomy.linears:
        if linear.path in work.mixes:
            found.setdefault(work.mixes[linear.path][0], []).append(linear)
    return found


def _allowed(mix: Mix, linears: list[Linear], spent: Tensor) -> float:
    """The budget in the unit of the costs. Raises InputError when the cheapest choices exceed it."""
    one = 8 if mix.unit == "bytes" else sum(_size(linear) for linear in linears)
    least = float(spent.amin(1).sum()) / one
    if mix.budget < least * (1 - 1e-12):
        what = {"bits": "bits a weight with their scales", "bytes": "bytes", "time": "of time a weight"}[mix.unit]
        raise InputError(f"mix: a budget of {mix.budget:g} is too small, the cheapest targets take {least:.6g} {what}")
    return mix.budget * one


def _size(linear: Linear) -> int:
    return linear.out_features * linear.in_features


# -- the choice --------------------------------------------------------------------------------------------------------


def losses_of(walk: Walk, key: str) -> tuple[dict[str, list[float]], float]:
    """(what each option loses, by path of the linear; the seconds that this took, those of stopped attempts included)."""
    place, seconds = walk.folder.inside("mixing").path / "directions", 0.0
    if rows_followed(walk.source, walk.work):
        seconds += followed_back(walk, place)
    records, _, watch = walk.aside(Trial, "mixing", visit=partial(BlockTrial, followed=place)).run(key)
    seconds += sum(watch.seconds.values()) + sum(seconds_of(records).values())
    return {path: found for record in records for path, found in record.losses.items()}, seconds


def decided(source: Source, work: Work, losses: Mapping[str, list[float]], form: type[Packing] = Packing) -> Work:
    """The work with every target chosen."""
    options: dict[str, int] = {}
    for mix, linears in _budgets(source, work).items():
        spent = costs(source, work, mix, linears, form)
        curves = [
            Curve(linear.path, _size(linear), tuple(losses[linear.path]), tuple(row.tolist()))
            for linear, row in zip(linears, spent, strict=True)
        ]
        share = mix.share.share(curves, _allowed(mix, linears, spent))
        options |= share.options
        counts = [sum(option == number for option in share.options.values()) for number in range(len(mix.into))]
        gap = f", at most {share.gap:.2g} above the least possible" if share.gap else ""
        summed = "divergence expected" if by_loss(source, mix) else "summed loss"
        events.note(f"mix by {mix.share.name}: {_counted(mix, counts)}; {summed} {share.loss:.3g}{gap}")
    return work.with_options(options)


def _counted(mix: Mix, counts: list[int]) -> str:
    """How many linears got each target, by what tells the targets apart."""
    settings = [target.settings() for target in mix.into]
    told = [
        name for name in dict.fromkeys(key for known in settings for key in known) if len({str(known.get(name)) for known in settings}) > 1
    ]
    words = [
        " ".join([target.name, *(f"{name} {known[name]}" for name in told if name in known)])
        for target, known in zip(mix.into, settings, strict=True)
    ]
    return ", ".join(f"{count} linears get {word}" for count, word in zip(counts, words, strict=True) if count)


@dataclass
class BlockTrial(BlockRun):
    """One block, in which every choice for every matrix is tried alone. losses: [options] by path of the linear.

    followed: where `direction` finds what a mix needs that judges by the model's predictions.
    """

    followed: Path | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)

    def compress(self, rows: Tensor) -> Tensor:
        """Measure, and return the rows as the original block puts them out."""
        if any(linear.path in self.work.mixes for linear in self.block.linears):
            if any(path in chosen for chosen in self.work.transforms for path in self.view.linears):
                statistics = self._transform(rows)
                self._load()
            else:
                statistics = self._collect(rows)
            for stage in self.block.stages:
                gram, tokens = self._gram(stage, statistics)
                for mix in dict.fromkeys(self.work.mixes[linear.path][0] for linear in stage.linears if linear.path in self.work.mixes):
                    self._try(mix, stage, rows[: mix.rows], gram, tokens)
        return self.forward(rows)

    def _try(self, mix: Mix, stage: Stage, rows: Tensor, gram: Tensor, tokens: int) -> None:
        wanted = [linear for linear in stage.linears if self.work.mixes.get(linear.path, (None,))[0] == mix]
        plain = self.forward(rows).float()
        judge = self._judge(mix, plain)
        for option in range(len(mix.into)):
            work = self.work.with_options({linear.path: option for linear in wanted})
            for treatments, linears in alike(wanted, work.treatments):
                names = [linear.path for linear in linears]
                weight = torch.cat([self.view.read(path).to(self.device) for path in names])
                values = solve_all(weight, gram, tokens, treatments, ", ".join(names), self.seed).values
                for path, before, after in zip(names, _split(weight, linears), _split(values, linears), strict=True):
                    set_weight(self.linears[path], after)
                    changed = judge(self.forward(rows).float() - plain)
                    set_weight(self.linears[path], before)
                    own = float((before - after).square().sum() / before.square().sum().clamp_min(torch.finfo(torch.float32).tiny))
                    self.losses.setdefault(path, []).append(changed + UNREACHED * own)

    @cached_property
    def direction(self) -> Tensor:
        """The one to which predictions are sensitive where rows leave the block, read once."""
        assert self.followed is not None
        return direction(self.followed, self.block).to(self.device)

    def _judge(self, mix: Mix, plain: Tensor) -> Judge:
        """plain: the rows as they leave the original block."""
        if by_loss(self.view.source, mix):
            sensitive = self.direction[: len(plain)]
            return lambda change: float((change * sensitive).sum(-1).square().sum()) / len(plain)
        energy = max(float(plain.square().sum()), torch.finfo(torch.float32).tiny)
        return lambda change: float(change.square().sum()) / energy


@dataclass
class Trial(Walk):
    """The pass that measures: rows go through the blocks as they are, nothing is written but what each choice loses."""

    visit: Callable[..., BlockRun] = BlockTrial
    title: str = "blocks tried"

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        with local.during("choose"):
            run = self._compress(block, calls.get("calibration"), streams, Stopwatch())
        assert isinstance(run, BlockTrial)
        return BlockRecord(key, self.folder.tensors_path(key), (), tuple(run.warnings), local.seconds, {}, run.losses)


def _split(stacked: Tensor, linears: list[Linear]) -> tuple[Tensor, ...]:
    return stacked.split([linear.out_features for linear in linears])
