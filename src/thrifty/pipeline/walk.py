"""The walk: block after block, each opened, compressed, written as finished, and left behind.

One block of weights is in memory at a time. Calibration rows go through the compressed blocks; evaluation rows go through the original and
the compressed ones side by side, so that the comparison of both models falls out of the same walk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from thrifty.base import events
from thrifty.base.anatomy import Block
from thrifty.base.errors import RunError
from thrifty.base.memory import return_free_memory
from thrifty.core.finite import all_finite
from thrifty.data import Rows
from thrifty.models import Call, Rotated, Shell, Source, linear_modules, run_block
from thrifty.models.blocks import tensors_of
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.folder import BlockRecord, RunFolder, block_key
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.readings import change_readings
from thrifty.pipeline.steps import Work
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.streams import Streams, enter
from thrifty.pipeline.view import BlockView

WriteBlock = Callable[[Path, Source, BlockView], dict[str, dict[str, object]]]


Kind = TypeVar("Kind", bound="Walk")


@dataclass
class Walk:
    """Everything the walk needs (packing: which linears are stored as codes); `run` takes it through all blocks and returns their records
    and the final rows."""

    source: Source
    work: Work
    setting: Setting
    calibration: Rows | None
    evaluation: Rows | None
    folder: RunFolder
    digest: dict[str, str]
    packing: Packing
    write_block: WriteBlock
    resumed: int = 0
    """Blocks that an earlier attempt had finished."""
    visit: Callable[..., BlockRun] = BlockRun
    """What happens inside a block."""
    title: str = "blocks"
    original: Source | None = None
    """The model that the result is judged against, where it is another one than `source`: the first of a chain."""
    ending: Mapping[str, Tensor] = field(default_factory=dict)
    """The evaluation rows as they leave the original's last blocks, by chain, where that is known already."""

    def aside(self, kind: type[Kind], name: str, **more: Any) -> Kind:
        """A walk of another kind over the same model and calibration rows, which judges nothing, in a place of its own.

        more: what its kind needs besides.
        """
        return kind(
            self.source,
            self.work,
            self.setting,
            self.calibration,
            None,
            self.folder.inside(name),
            self.digest,
            self.packing,
            self.write_block,
            original=self.original,
            **more,
        )

    def run(self, key: str) -> tuple[list[BlockRecord], Streams, Stopwatch]:
        """Walk all blocks; those that an earlier attempt finished are skipped."""
        watch = Stopwatch()
        order = [(chain, block) for chain in self.source.anatomy.chains for block in self._blocks(chain)]
        keys = self._keys(key, [block for _, block in order])
        records, streams = self._resume(keys)
        self.resumed = start = len(records)
        with events.task(self.title, len(order)) as advance:
            advance(start, "")
            for position in range(start, len(order)):
                chain, block = order[position]
                if position == 0 or order[position - 1][0] != chain:
                    with watch.during("enter"):
                        calls = self._enter(chain, streams)
                    return_free_memory()
                elif position == start:
                    calls = self._calls(streams)
                advance(position, block.path)
                here = {kind: by_path[block.path] for kind, by_path in calls.items()}
                record = self._block(block, keys[position], here, streams)
                if position + 1 == len(order) or order[position + 1][0] != chain:
                    if chain in self.ending:
                        streams.now["before"] = self.ending[chain]
                    streams.finish_chain(chain)
                self.folder.save_streams(keys[position], streams)
                self.folder.finish(record)
                records.append(record)
                self._tidy(block)
                advance(position + 1, block.path)
        return records, streams, watch

    def _tidy(self, block: Block) -> None:
        """Give back what such a block has left in the heap, where that is much."""
        return_free_memory(sum(4 * self.source.tensors[key].numel for key in self.source.block_keys(block)))

    def _blocks(self, chain: str) -> list[Block]:
        return [block for block in self.source.anatomy.blocks if block.chain == chain]

    def _keys(self, key: str, blocks: list[Block]) -> list[str]:
        keys: list[str] = []
        for block in blocks:
            weights = [self.digest[name] for name in self.source.block_keys(block)]
            key = block_key(key, [block.path, weights, self.work.settings(block)])
            keys.append(key)
        return keys

    def _resume(self, keys: list[str]) -> tuple[list[BlockRecord], Streams]:
        """The blocks that need no more work, and the rows that leave the last of them."""
        records: list[BlockRecord] = []
        for key in keys:
            record = self.folder.block(key)
            if record is None:
                break
            records.append(record)
        while records:
            streams = self.folder.load_streams(records[-1].key)
            if streams is not None:
                events.note(f"{len(records)} of {len(keys)} blocks were already finished")
                return records, streams
            records.pop()
        return [], Streams()

    # -- entering ------------------------------------------------------------------------------------------------------

    def _shell(self) -> Shell:
        return self.source.shell(torch.float32)

    def _calls(self, streams: Streams, shell: Shell | None = None) -> dict[str, dict[str, Call]]:
        """What the blocks' forward gets besides hidden states, by kind of rows and block path: masks and positions are as long as the
        rows."""
        shell = shell or self._shell()
        found = {}
        for kind, stream, rows in (("calibration", "calibration", self.calibration), ("evaluation", "before", self.evaluation)):
            if rows is not None:
                first, last = (
                    shell.calls(
                        {name: tensor[row : row + 1] for name, tensor in rows.inputs.items()}, streams.outputs(stream, row, row + 1)
                    )
                    for row in (0, rows.rows - 1)
                )
                _check_alike(first, last)
                found[kind] = first
        return found

    def _enter(self, chain: str, streams: Streams) -> dict[str, dict[str, Call]]:
        shell = self._shell()
        batch, setting = self.setting.batch, self.setting
        if self.calibration is not None:
            streams.now["calibration"] = enter(shell, self.calibration.inputs, chain, streams, "calibration", batch, setting.dtype)
            if self.work.heals:
                streams.now["reference"] = streams.now["calibration"].clone()
        if self.evaluation is not None:
            streams.now["after"] = enter(shell, self.evaluation.inputs, chain, streams, "after", batch, torch.float32)
            if chain not in self.ending:
                original = shell if self.source.original is self.source else self.source.original.shell(torch.float32)
                streams.now["before"] = enter(original, self.evaluation.inputs, chain, streams, "before", batch, torch.float32)
                if isinstance(self.source, Rotated):
                    first = {name: tensor[:1] for name, tensor in self.evaluation.inputs.items()}
                    self.source.check_shell(shell, original, first, streams.now["after"][:1], streams.now["before"][:1])
        return self._calls(streams, shell)

    # -- one block -----------------------------------------------------------------------------------------------------

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        if isinstance(self.source, Rotated):
            kind, stream = ("evaluation", "after") if "after" in streams.now else ("calibration", "calibration")
            if stream in streams.now:
                self.source.check_block(block, streams.now[stream][:1], calls[kind])
        with local.during("forward"):
            run = self._compress(block, calls.get("calibration"), streams, local)
        view, reports, warnings = run.view, run.reports, tuple(run.warnings)
        del run  # and with it the module of the calibration pass
        self._tidy(block)
        with local.during("evaluate"):
            if self.evaluation is not None:
                self._evaluate(view, calls["evaluation"], streams)
                self._tidy(block)
            check_finite(block, streams)
        with local.during("write"):
            self.source.check_unchanged()  # before the block counts as finished under the digest of what was opened
            packed = self.write_block(self.folder.tensors_path(key), self.source, view)
            layers = tuple(reports[linear.path] for linear in block.linears if linear.path in reports)
        return BlockRecord(key, self.folder.tensors_path(key), layers, warnings, local.seconds, packed)

    def _compress(self, block: Block, call: Call | None, streams: Streams, watch: Stopwatch) -> BlockRun:
        """Compress one block; when the device runs out of memory, go on in batches of half the size, and say so."""
        rows = streams.now.get("calibration")
        while True:
            setting = self.setting
            device = torch.device(setting.device)
            run = None
            try:
                call = None if call is None else call.to(device, setting.dtype)
                run = self.visit(
                    BlockView(self.source, block, self.packing),
                    call,
                    self.work,
                    setting.dtype,
                    setting.batch,
                    setting.order,
                    device,
                    setting.seed,
                    watch,
                    reference=streams.now.get("reference"),
                )
                if rows is None:
                    run.compress_without_rows()
                else:
                    streams.now["calibration"] = run.compress(rows)
                    if run.expected is not None:
                        streams.now["reference"] = run.expected
                return run
            except torch.OutOfMemoryError:
                pass  # what is held while an exception is handled is free only behind the clause
            del run
            self._halve(block, device)

    def _evaluate(self, view: BlockView, call: Call, streams: Streams) -> None:
        device = torch.device(self.setting.device)
        exact = call.to(device, torch.float32)
        for stream, replacements in (("before", {}), ("after", view.replacements())):
            if stream not in streams.now:  # where the original's rows end is known
                continue
            source = self.source.original if stream == "before" else self.source
            module = source.block(view.block, torch.float32, device, replacements)
            if stream == "after":
                change_readings(linear_modules(module, view.block), view.reading)
            hidden = streams.now[stream]
            start = 0
            while start < len(hidden):
                stop = start + self.setting.batch
                return_free_memory()  # what the last batch left scattered in the heap
                try:
                    hidden[start:stop] = run_block(module, hidden[start:stop].to(device), exact).cpu()
                    start = stop
                    continue
                except torch.OutOfMemoryError:
                    pass  # what is held while an exception is handled is free only behind the clause
                self._halve(view.block, device)
            del module

    def _halve(self, block: Block, device: torch.device) -> None:
        """Go on with half as many rows at a time in block order, and say so."""
        if self.setting.order == "block" and self.setting.batch == 1:
            raise RunError(f"{block.path}: out of memory on {device} even with one row at a time; use shorter --tokens")
        torch.cuda.empty_cache()
        batch = max(1, self.setting.batch // 2)
        events.warn(f"{block.path}: out of memory on {device}; going on in block order with {batch} rows at a time")
        self.setting = replace(self.setting, batch=batch, order="block")


def check_finite(block: Block, streams: Streams) -> None:
    """Raise RunError when rows leave a block as infinite or as no numbers: nothing that follows would mean anything."""
    which = {"calibration": "calibration rows", "before": "the original's evaluation rows", "after": "the result's evaluation rows"}
    for name, words in which.items():
        rows = streams.now.get(name)
        if rows is not None and not all_finite(rows):
            raise RunError(f"{block.path}: {words} leave it with values that are not finite; are its weights, or the recipe, sound?")


def _check_alike(first: dict[str, Call], last: dict[str, Call]) -> None:
    """Raise RunError when blocks are called with other things for other rows: one call has to do for all."""
    for path, call in first.items():
        pairs = zip(tensors_of(call), tensors_of(last[path]), strict=True)
        if any(one.shape != other.shape or not torch.equal(one, other) for one, other in pairs):
            raise RunError(f"{path}: what this block is called with differs from row to row; such models or inputs are not supported yet")
