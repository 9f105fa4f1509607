"""The walk of a step that leaves the hidden states fewer channels: a pass that looks at them at every norm, then one that writes.

The first needs the whole model as it is, for one map serves all blocks: it leaves the products of what each norm sees in a file a block.
The second reads tensors that are already turned and cut (`models.sliced`). The first block of each kind is checked to do the same when its
hidden states are turned and none of them are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from thrifty.base import events
from thrifty.base.anatomy import Block, Linear, Norm
from thrifty.base.store import write_unsettled
from thrifty.core.linalg import row_forms
from thrifty.core.slicing import Slice, drawn, normalised
from thrifty.models import Call, Rotated, Source, norm_modules
from thrifty.models.resize import Resized
from thrifty.models.rotated import outer_norms, readers, writers
from thrifty.models.sliced import Sliced
from thrifty.pipeline.block import LayerReport, passed
from thrifty.pipeline.folder import BlockRecord, seconds_of
from thrifty.pipeline.reshape import ReshapeWalk, write_result
from thrifty.pipeline.shaping import Shaping
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.streams import Streams
from thrifty.pipeline.view import read_matrix
from thrifty.pipeline.walk import check_finite
from thrifty.structure.narrow import Narrower, Products

SUM, GRAM, READ = "sum of all", "gram ", "read "


@dataclass(frozen=True)
class Slicing(Shaping):
    """A shaping of this kind. seen: the file of each norm's products, by its path. whole: a rotation with no channel cut."""

    seen: Mapping[str, Path] = field(default_factory=dict)
    whole: Tensor | None = None

    @property
    def undecided(self) -> bool:
        return self.whole is None

    @property
    def aside_bytes(self) -> int:
        anatomy = self.sliced.original.anatomy
        return 4 * ((2 if self._narrower.sees_readers else 1) * self._norms + 2 * len(anatomy.blocks)) * anatomy.hidden_size**2

    @property
    def operations(self) -> float:
        return self._narrower.operations(self.sliced.original.anatomy.hidden_size, self._norms)

    @property
    def _narrower(self) -> Narrower:
        assert isinstance(self.step, Narrower)
        return self.step

    @property
    def _norms(self) -> int:
        anatomy = self.sliced.original.anatomy
        return sum(len(outer_norms(block)) for block in anatomy.blocks) + len(anatomy.final_norms)

    @property
    def sliced(self) -> Sliced:
        """The result."""
        assert isinstance(self.resized.source, Sliced)
        return self.resized.source


def slicing(source: Source, step: Narrower) -> Slicing:
    """What the step will make of this model. Raises InputError where the architecture cannot have it."""
    hidden = source.anatomy.hidden_size
    made = Sliced(source, step.width(hidden), step.name)
    resized = Resized(made, made.raw, {block.path: block for block in source.anatomy.blocks})
    parameters = (source.anatomy.parameters, made.anatomy.parameters)
    return Slicing(step, resized, changes={"parameters": parameters, "hidden channels": (hidden, made.anatomy.hidden_size)})


@dataclass
class LookWalk(ReshapeWalk):
    """The pass that only looks: calibration rows through the original's blocks, and products of the hidden states at each norm."""

    title: str = "blocks looked at"

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        path = self.folder.tensors_path(key)
        step = self.shaping.step
        assert isinstance(step, Narrower)
        found = _Products(self.source.anatomy.hidden_size, step.counts_alike)
        with local.during("forward"):
            module = self.source.block(block, self.setting.dtype, self.setting.device)
            rows = self._through(block, module, streams.now["calibration"], calls["calibration"], found)
            streams.now["calibration"] = rows
            check_finite(block, streams)
        read = readers(block)
        if block is self._blocks(block.chain)[-1]:
            read |= {self.source.anatomy.head or "": self.source.anatomy.final_norms[0]}
            with local.during("gram"):
                for batch in rows.split(self.setting.batch):
                    found.add(self.source.anatomy.final_norms[0], batch)
        if step.sees_readers:
            with local.during("gram"):
                for linear, norm in read.items():
                    found.read(norm, self._reader(block, linear) * self._sliced.gain(norm))
        write_unsettled(path, lambda temporary: save_file(found.tensors(), temporary))
        return BlockRecord(key, path, (), (), local.seconds, {})

    @property
    def _sliced(self) -> Sliced:
        assert isinstance(self.shaping, Slicing)
        return self.shaping.sliced

    def _reader(self, block: Block, path: str) -> Tensor:
        """A matrix that reads through a norm, [out, in] float32."""
        if path == self.source.anatomy.head:
            return self._sliced.head
        linear = next(linear for linear in (*block.linears, *block.routers) if linear.path == path)
        return read_matrix(self.source, linear).to(torch.float32)

    def _through(self, block: Block, module: nn.Module, rows: Tensor, call: Call, found: _Products) -> Tensor:
        inside = norm_modules(module, block)
        hooks = [
            inside[norm.path].register_forward_pre_hook(lambda _, inputs, norm=norm: found.add(norm, inputs[0]))
            for norm in outer_norms(block)
        ]
        try:
            return passed(module, rows, call, self.setting.batch, self.setting.device)
        finally:
            for hook in hooks:
                hook.remove()


class _Products:
    """Sums of products of hidden states as each norm sees them, and of all of them as the step wants them."""

    def __init__(self, width: int, alike: bool) -> None:
        self.alike, self.width = alike, width
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}
        self.all = torch.zeros(width, width, dtype=torch.float64)
        self.reads: dict[str, Tensor] = {}

    def add(self, norm: Norm, values: Tensor) -> None:
        rows = normalised(values, centred=norm.kind == "layer")
        product = (rows.T @ rows).to("cpu", torch.float64)
        self.sums[norm.path] = self.sums.get(norm.path, 0) + product
        self.tokens[norm.path] = self.tokens.get(norm.path, 0) + len(rows)
        if not self.alike:
            rows = values.reshape(-1, self.width).to(torch.float32)
            product = (rows.T @ rows).to("cpu", torch.float64)
        self.all += product

    def read(self, norm: Norm, weight: Tensor) -> None:
        """Note what a matrix [out, in] with the gain in it makes of what a norm puts out."""
        self.reads[norm.path] = self.reads.get(norm.path, 0) + (weight.T @ weight).to(torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """By name: products of each norm, and what reads it as a share of what they put out together; the sum of all that was seen."""
        means = {path: total / self.tokens[path] for path, total in self.sums.items()}
        shares = {READ + path: (read / (read * means[path]).sum().clamp_min(1e-30)).to(torch.float32) for path, read in self.reads.items()}
        return {**{GRAM + path: mean.to(torch.float32) for path, mean in means.items()}, **shares, SUM: self.all}


@dataclass
class SliceWalk(ReshapeWalk):
    """The walk that writes; its source is the result, whose tensors are cut as they are read."""

    title: str = "blocks sliced"
    tokens: int = 0

    @property
    def slicing(self) -> Slicing:
        """What comes out."""
        assert isinstance(self.shaping, Slicing)
        return self.shaping

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        path = self.folder.tensors_path(key)
        with local.during("check"):
            self._check_turned(block, calls, streams)
        with local.during("solve"):
            tensors = {name: self.source.read(name) for name in self.source.block_keys(block)}
        reports = tuple(self._rows(self.slicing.resized.blocks[block.path]))
        with local.during("write"):
            self.source.check_unchanged()
            write_result(path, tensors)
        with local.during("evaluate"):
            for stream, source in (("before", self.source.original), ("after", self.source)):
                if stream in streams.now:
                    module = source.block(block, torch.float32, self.setting.device, tensors if stream == "after" else None)
                    self._advance(module, stream, calls["evaluation"], streams)
            check_finite(block, streams)
        return BlockRecord(key, path, reports, (), local.seconds, {})

    def _check_turned(self, block: Block, calls: dict[str, Call], streams: Streams) -> None:
        """Raise InputError when a block makes something else of hidden states that are only turned."""
        kind = f"{block.chain} {[linear.path.removeprefix(block.path) for linear in block.linears]}"
        rows = streams.now.get("after")
        if rows is None or kind in self.checked:
            return
        self.checked.add(kind)
        turning = Slice(self.slicing.whole.to(torch.float32))
        turned = Rotated(self.source.original, lambda *_: turning, self.shaping.step.name)
        original = self.slicing.resized.blocks[block.path]
        row = turning.of(Slice(self.slicing.sliced.matrix).back(rows[:1]))
        turned.check_block(original, row, calls["evaluation"])

    # -- what is told --------------------------------------------------------------------------------------------------

    def _rows(self, block: Block) -> Iterator[LayerReport]:
        """A row for each matrix that got narrower: of what it reads or writes, the share of its outputs' energy that is lost."""
        known, sliced = readers(block), self.slicing.sliced
        for linear in block.linears:
            if linear.path in known:
                yield self._report(linear, *self._reading(linear, known[linear.path]), self.tokens)
            elif linear in writers(block, len(sliced.matrix)):
                weight = read_matrix(sliced.original, linear).to(torch.float32)
                size = float(weight.square().sum())
                yield self._report(linear, size - float((sliced.matrix.T @ weight).square().sum()), size, 0)

    def _reading(self, linear: Linear, norm: Norm) -> tuple[float, float]:
        """(what is lost, all there was) of the outputs of a matrix that reads through a norm, its bias apart."""
        sliced = self.slicing.sliced
        gram = loaded(self.slicing.seen[norm.path], GRAM + norm.path).to(torch.float32)
        weight = read_matrix(sliced.original, linear).to(torch.float32) * sliced.gain(norm)
        gone = weight - read_matrix(sliced, linear).to(torch.float32) @ sliced.matrix.T
        return float(row_forms(gone, gram).clamp_min(0).sum()), float(row_forms(weight, gram).clamp_min(0).sum())

    def _report(self, linear: Linear, error: float, size: float, tokens: int) -> LayerReport:
        width, kept = self.slicing.sliced.matrix.shape
        return LayerReport(
            name=linear.path,
            method=self.shaping.step.name,
            bits=8.0 * self.source.tensors[linear.source].dtype.itemsize,
            sparsity=1 - kept / width,
            error=max(error, 0.0),
            relative_error=max(error, 0.0) / size if size > 0 else 0.0,
            tokens=tokens,
            details={"channels": float(kept)},
        )


def settled(walk: SliceWalk, key: str) -> tuple[SliceWalk, float]:
    """(the walk with the directions found by a pass over the whole model, the seconds it took)."""
    step, shaping, rows = walk.shaping.step, walk.slicing, walk.calibration
    assert isinstance(step, Narrower) and rows is not None
    records, _, watch = walk.aside(LookWalk, "directions", shaping=shaping).run(key)
    began = Stopwatch()
    with began.during("directions"):
        seen = {path: record.tensors for record in records for path in _norms(record.tensors)}
        gram = torch.stack([loaded(record.tensors, SUM) for record in records]).sum(0)
        products = Products(gram, lambda: ((loaded(file, GRAM + path), loaded(file, READ + path)) for path, file in seen.items()))
        sliced = shaping.sliced
        hidden, kept = sliced.original.anatomy.hidden_size, sliced.anatomy.hidden_size
        matrix = step.matrix(products, kept, keeps_mean=sliced.keeps_mean)
        whole = drawn(hidden, keeps_mean=sliced.keeps_mean)

        @lru_cache(maxsize=1)  # several matrices read through one norm
        def reads(path: str) -> Tensor:
            found = step.reading(loaded(seen[path], GRAM + path), matrix)
            return (matrix if found is None else found).to(torch.float32)

        sliced = sliced.settled(matrix, lambda norm: reads(norm.path), dict(rows.select(0, 1).inputs))
    share = float((matrix.T @ gram @ matrix).trace() / gram.trace())
    events.note(f"{step.name} keeps {kept} of {hidden} channels, which hold {share:.2%} of the energy of the hidden states")
    shaping = replace(shaping, resized=replace(shaping.resized, source=sliced), seen=seen, whole=whole)
    seconds = sum(watch.seconds.values()) + sum(seconds_of(records).values()) + sum(began.seconds.values())
    return replace(walk, source=sliced, calibration=None, shaping=shaping, tokens=rows.tokens), seconds


def loaded(file: Path, name: str) -> Tensor:
    """One of the matrices that a pass has left, float64."""
    with safe_open(file, "pt") as stored:
        return stored.get_tensor(name).to(torch.float64)


def _norms(file: Path) -> list[str]:
    """Paths of the norms whose products lie there."""
    with safe_open(file, "pt") as stored:
        names: list[str] = list(stored.keys())
    return [name.removeprefix(GRAM) for name in names if name.startswith(GRAM)]
