"""The walk of a structural step: block after block opened, judged, cut, written as it will stand in the result, and left behind.

As in the walk over matrices, one block of weights is in memory at a time, rows of calibration go through the blocks that came out, and rows
of evaluation go through both models side by side. Blocks of the result are built from the result's own config: what is judged here is what
plain transformers loads. The first block of each kind is also checked to do what the original's does with the removed units switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from thrifty.base import events
from thrifty.base.anatomy import Block, Linear, Member, Space, Stage, Units
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Cut
from thrifty.base.store import write_unsettled
from thrifty.core.cut import cut, energies, indices, staying, unit_values, zeroed
from thrifty.core.moments import Moments
from thrifty.core.statistics import Statistics
from thrifty.models import Call, Shell, run_block
from thrifty.pipeline.block import LayerReport, passed
from thrifty.pipeline.folder import BlockRecord, block_key
from thrifty.pipeline.readings import gather
from thrifty.pipeline.shaping import Shaping, originals
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.stored import check_written
from thrifty.pipeline.streams import Streams
from thrifty.pipeline.view import place, taken
from thrifty.pipeline.walk import Walk, check_finite
from thrifty.pipeline.watching import look
from thrifty.structure.base import BlockPruner, Pruner, Seen, View, choose

SAME = 1e-3
"""How much a block of the result may differ from the original's with the units switched off, as a share of the largest value."""


class CutView(View):
    """One block of the original, as it lies on disk."""

    def __init__(self, walk: ReshapeWalk, block: Block, call: Call | None) -> None:
        self.source, self.block, self.units = walk.source, block, walk.shaping.units.get(block.path, ())
        self.setting, self.call = walk.setting, call
        self._biased = set(walk.shaping.resized.biases)
        self._stored: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}

    @cached_property
    def module(self) -> nn.Module:
        """The block itself, made when it is first wanted: most scores look at tensors alone."""
        return self.source.block(self.block, self.setting.dtype, self.setting.device)

    def read(self, path: str) -> Tensor:
        linear = self.linear(path)
        return taken(self.stored(linear.source), linear).to(torch.float32, copy=True)

    def key(self, name: str) -> str:
        found = self.source.disk_name(name)
        if found is None:
            raise InputError(f"{name} does not lie on disk as one tensor, so this step cannot change it")
        return found

    def matrix(self, linear: Linear) -> Tensor:
        """What `read` gives, not to be changed: it may be what is stored."""
        return taken(self.stored(linear.source), linear).to(torch.float32)

    def stored(self, source: str) -> Tensor:
        """A tensor of the block as it lies on disk, read once."""
        if source not in self._stored:
            self._stored[source] = self.source.read(source)
        return self._stored[source]

    def tensor(self, source: str) -> Tensor:
        if source not in self._tensors:  # experts in one tensor ask for it one by one
            self._tensors[source] = self.stored(source).to(torch.float32)
        return self._tensors[source]

    def values(self, units: Units, member: Member) -> Tensor:
        return unit_values(self.tensor(member.source), member, units.count)

    def holds_bias(self, path: str) -> bool:
        return self.linear(path).bias_source is not None or path in self._biased

    def bias(self, path: str) -> Tensor:
        linear = self.linear(path)
        return torch.zeros(linear.out_features) if linear.bias_source is None else self.tensor(linear.bias_source)

    def forward(self, rows: Tensor) -> Tensor:
        if self.call is None:
            raise RunError(f"{self.block.path}: there are no calibration rows to run it with")
        return passed(self.module, rows, self.call, self.setting.batch, self.setting.device)


@dataclass
class ReshapeWalk(Walk):
    """The walk. checked: kinds of blocks that were compared with the original's."""

    shaping: Shaping = field(kw_only=True)
    title: str = "blocks cut"
    checked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.new = originals(self.shaping)

    def _keys(self, key: str, blocks: list[Block]) -> list[str]:
        keys: list[str] = []
        for block in blocks:
            weights = [self.digest[name] for name in self.source.block_keys(block)]
            key = block_key(key, [block.path, weights, self.shaping.settings(), self._decided()])
            keys.append(key)
        return keys

    def _decided(self) -> object:
        """What is known of the result beyond the step: part of the content keys."""
        return [sorted(self.new), {path: dict(counts) for path, counts in self.shaping.by_block.items()}]

    # -- entering ------------------------------------------------------------------------------------------------------

    def _calls(self, streams: Streams, shell: Shell | None = None) -> dict[str, dict[str, Call]]:
        """As in every walk, and beside it what the result's blocks are called with, by path of the original's."""
        found = super()._calls(streams, shell)
        small = self.shaping.resized.source.hollow_shell()
        for kind, rows in (("calibration", self.calibration), ("evaluation", self.evaluation)):
            if rows is not None:
                calls = small.calls(dict(rows.select(0, 1).inputs), {}, to_the_end=False)
                found[f"{kind} of the result"] = {path: calls[self.new[path].path] if path in self.new else Call() for path in found[kind]}
        return found

    # -- one block -----------------------------------------------------------------------------------------------------

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        path = self.folder.tensors_path(key)
        if block.path not in self.new:
            with local.during("evaluate"):
                self._pass_original(block, calls, streams)
            with local.during("write"):
                write_unsettled(path, lambda temporary: save_file({}, temporary))
            return BlockRecord(key, path, (), (), local.seconds, {})
        with local.during("forward"):
            view = CutView(self, block, calls.get("calibration"))
            seen = self._look(view, streams, local)
        with local.during("solve"):
            tensors, cuts, warnings = self._cut(view, seen)
        with local.during("check"):
            self._check(view, cuts, calls, streams)
        reports = self._reports(view, cuts, seen)
        with local.during("write"):
            self.source.check_unchanged()
            write_result(path, tensors)
        del view, seen
        self._tidy(block)
        small = {name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        with local.during("forward"):
            self._pass_calibration(block, small, calls, streams)
        with local.during("evaluate"):
            self._pass_original(block, calls, streams)
            self._pass_result(block, small, calls, streams)
            check_finite(block, streams)
        return BlockRecord(key, path, reports, tuple(warnings), local.seconds, {})

    def _look(self, view: CutView, streams: Streams, watch: Stopwatch) -> Seen:
        """What calibration rows say of the block before it is cut."""
        seed = self.setting.seed
        rows = streams.now.get("calibration")
        step = self.shaping.step
        if rows is None or not view.units or isinstance(step, BlockPruner) or not step.calibrated:
            return Seen(torch.empty(0) if rows is None else rows, seed=seed)
        return self.observed(view, rows, watch)

    def observed(self, view: CutView, rows: Tensor, watch: Stopwatch) -> Seen:
        """What these rows say of the block: moments of what every stage reads, and products where the step needs them."""
        step = self.shaping.step
        inputs: dict[str, Moments] = {}
        grams: dict[str, Statistics] = {}

        def keep(space: Space, values: Tensor) -> None:
            with watch.during("gram"):
                taken = Moments.of(values)
                inputs[space.name] = inputs[space.name].merge(taken) if space.name in inputs else taken
                if "gram" in step.needs:
                    product = gather(values)
                    grams[space.name] = grams[space.name].merge(product) if space.name in grams else product

        read = {stage.reads.name for stage in view.block.stages}

        def on_stage(stage: Stage, values: Tensor) -> None:
            keep(stage.reads, values)

        def on_shared(space: Space, values: Tensor) -> None:
            if space.name not in read:
                keep(space, values)

        batches = (batch.to(self.setting.device) for batch in rows.split(self.setting.batch))
        look(view.block, view.module, batches, view.call, on_stage, on_shared)
        return Seen(rows, inputs, grams, self.setting.seed)

    def _cut(self, view: CutView, seen: Seen) -> tuple[dict[str, Tensor], list[Cut], list[str]]:
        """(the tensors of the result's block by disk key there, what was cut, warnings)."""
        step, resized = self.shaping.step, self.shaping.resized
        warnings: list[str] = []
        cuts: list[Cut] = []
        changed: dict[str, Tensor] = {}
        new = self.new[view.block.path]
        added: dict[str, Tensor] = {}
        if isinstance(step, Pruner) and view.units:
            scores = self.shaping.scores.get(view.block.path) or {space.name: one for space, one in step.score(view, seen).items()}
            cuts = [Cut(units, choose(scores[units.space.name], self.shaping.count(view.block, units))) for units in view.units]
            warnings = _unseen(view, seen) if step.calibrated and not self.shaping.scores else []
            change = step.compensate(view, cuts, seen)
            for path, matrix in change.weights.items():
                place(changed, self.source, view.linear(path), matrix)
            for path, bias in change.biases.items():
                key = view.linear(path).bias_source
                if key is not None:
                    changed[key] = bias
                else:
                    added[resized.biases[path]] = bias
        types = {name: self.source.tensors[name].dtype for name in changed}
        tensors = {name: view.stored(name) for name in self.source.block_keys(view.block)}
        tensors |= {name: tensor.to(types[name]) for name, tensor in changed.items()}
        small = {resized.key(self.source, new, name): tensor.contiguous() for name, tensor in cut(tensors, cuts).items()}
        return {**small, **self._added(new, small, added)}, cuts, warnings

    def _added(self, new: Block, small: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Biases that the original's block does not have, zero where nothing is given for them."""
        source = self.shaping.resized.source
        found = {}
        for key in source.block_keys(new):
            if key not in small:
                info = source.tensors[key]
                found[key] = given[key].to(info.dtype) if key in given else torch.zeros(info.shape, dtype=info.dtype)
        return found

    # -- checking and passing ------------------------------------------------------------------------------------------

    def _check(self, view: CutView, cuts: Sequence[Cut], calls: dict[str, Call], streams: Streams) -> None:
        """Raise RunError when the result's block is not the original's with the removed units switched off, on one row."""
        name, stream = ("evaluation", "after") if "evaluation" in calls else ("calibration", "calibration")
        rows = streams.now.get(stream)
        moved = self.new[view.block.path].index != view.block.index  # some blocks are what they are by their place
        if rows is None or not (cuts or moved) or any(item.units.kind == "experts" for item in cuts):
            return
        where = view.block.path if moved else f"{type(view.module).__name__} of {view.block.chain}"
        kind = f"{where} {[item.units.alike for item in cuts]}"
        if kind in self.checked:
            return
        self.checked.add(kind)
        device, resized = self.setting.device, self.shaping.resized
        new = self.new[view.block.path]
        tensors = {key: self.source.read(key) for key in self.source.block_keys(view.block)}
        small = {resized.key(self.source, new, key): tensor for key, tensor in cut(tensors, cuts).items()}
        small |= self._added(new, small, {})
        one = rows[:1].to(device, torch.float32)
        before = run_block(self.source.block(view.block, torch.float32, device, zeroed(tensors, cuts)), one, calls[name])
        after = run_block(resized.source.block(new, torch.float32, device, small), one, calls[f"{name} of the result"])
        difference = float((before - after).abs().max()) / max(float(before.abs().max()), torch.finfo(torch.float32).tiny)
        if not difference <= SAME:
            what = ", ".join(item.units.space.name for item in cuts) or "its place"
            raise RunError(
                f"{view.block.path}: without the removed parts of {what} it differs by {difference:.2g} (relative) from itself with these "
                "switched off; this architecture ties them to something else, so it cannot be cut like this"
            )

    def _pass_calibration(self, block: Block, tensors: dict[str, Tensor], calls: dict[str, Call], streams: Streams) -> None:
        rows = streams.now.get("calibration")
        if rows is not None:
            module = self.shaping.resized.source.block(self.new[block.path], self.setting.dtype, self.setting.device, tensors)
            call = calls["calibration of the result"]
            streams.now["calibration"] = passed(module, rows, call, self.setting.batch, self.setting.device)

    def _pass_original(self, block: Block, calls: dict[str, Call], streams: Streams) -> None:
        if "before" in streams.now:
            module = self.source.block(block, torch.float32, self.setting.device)
            self._advance(module, "before", calls["evaluation"], streams)

    def _pass_result(self, block: Block, tensors: dict[str, Tensor], calls: dict[str, Call], streams: Streams) -> None:
        if self.evaluation is not None:
            module = self.shaping.resized.source.block(self.new[block.path], torch.float32, self.setting.device, tensors)
            self._advance(module, "after", calls["evaluation of the result"], streams)

    def _advance(self, module: nn.Module, stream: str, call: Call, streams: Streams) -> None:
        streams.now[stream] = passed(module, streams.now[stream], call, self.setting.batch, self.setting.device)

    def _reports(self, view: CutView, cuts: Sequence[Cut], seen: Seen) -> tuple[LayerReport, ...]:
        """A row for each matrix that was cut: which share of it is gone, and of what it puts out, inputs taken as independent."""
        kept: dict[str, dict[str, Tensor]] = {}
        details: dict[str, dict[str, float]] = {}
        for item in cuts:
            gone = ~staying(item.units, item.keep)
            for member in item.units.members:
                if member.linear is not None and member.side in ("rows", "columns"):
                    linear = view.linear(member.linear)
                    length = linear.in_features if member.side == "columns" else linear.out_features
                    mask = kept.setdefault(linear.path, {}).setdefault(member.side, torch.ones(length))
                    mask[indices(member, item.units.count)[gone].flatten()] = 0
                    details.setdefault(linear.path, {})[item.units.kind] = float(len(item.keep))
        return tuple(
            self._report(view, stage, linear, kept[linear.path], details[linear.path], seen)
            for stage in view.block.stages
            for linear in stage.linears
            if linear.path in kept
        )

    def _report(
        self, view: CutView, stage: Stage, linear: Linear, kept: dict[str, Tensor], details: dict[str, float], seen: Seen
    ) -> LayerReport:
        rows = kept.get("rows", torch.ones(linear.out_features))
        columns = kept.get("columns", torch.ones(linear.in_features))
        size = seen.size(stage.reads).square()
        every, staying_rows = energies(view.matrix(linear), rows)
        whole, left = float(every @ size), float(staying_rows @ (size * columns))
        return LayerReport(
            name=linear.path,
            method=self.shaping.step.name,
            bits=8.0 * self.source.tensors[linear.source].dtype.itemsize,
            sparsity=1 - float(rows.mean() * columns.mean()),
            error=whole - left,
            relative_error=max(0.0, 1 - left / whole) if whole > 0 else 0.0,
            tokens=seen.inputs[stage.reads.name].tokens if stage.reads.name in seen.inputs else 0,
            details=details,
        )


def _unseen(view: CutView, seen: Seen) -> list[str]:
    """A warning for each space of units that no calibration token reached: then only weights were judged."""
    found = []
    for units in view.units:
        name = units.space.name
        read = any(stage.reads.name == name for stage in view.block.stages)
        if read and (name not in seen.inputs or seen.inputs[name].tokens == 0):
            found.append(f"{view.block.path}.{name}: no calibration tokens reached it; its {units.kind} were judged by weights alone")
            events.warn(found[-1])
    return found


def write_result(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a block of the result, and read it back."""
    write_unsettled(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    check_written(path, tensors)
