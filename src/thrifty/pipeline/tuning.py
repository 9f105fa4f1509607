"""The step that trains: all matrices together, by what the whole model says, once every block is solved.

Three parts follow each other, each resumed by itself. A walk as always, which finds where training starts and writes no result. Training,
with the whole model in memory, twice where the original is needed beside it. Then a second walk, which takes what was trained in place of
solving, so that errors, evaluation and files come about as in any other run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from thrifty.base import events
from thrifty.base.anatomy import Block, Linear
from thrifty.base.errors import InputError
from thrifty.base.memory import return_free_memory
from thrifty.base.records import Encoded, Solution
from thrifty.base.store import file_digest, write_atomic
from thrifty.core.linalg import row_forms
from thrifty.core.reading import Reading
from thrifty.core.trainable import FreeWeight, GridWeight, LowRankWeight, Trained
from thrifty.data import Rows
from thrifty.measure.language import IGNORED, causal_targets
from thrifty.models import Call, Shell, Source, linear_modules, run_block, run_with_weights
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.folder import BlockRecord, seconds_of
from thrifty.pipeline.readings import change_readings
from thrifty.pipeline.steps import Work
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.streams import Streams, enter
from thrifty.pipeline.walk import Walk
from thrifty.train import train
from thrifty.tune.base import Tuner


def check_tuning(source: Source, work: Work, rows: Rows | None) -> None:
    """Raise InputError where a model or its rows are not such that they can be trained on."""
    if work.tuner is None:
        return
    anatomy, name = source.anatomy, work.tuner.name
    if anatomy.kind != "causal_lm" or len(anatomy.chains) != 1:
        raise InputError(f"{name} needs a causal language model, whose next tokens it trains by; {anatomy.architecture} is {anatomy.kind}")
    if rows is None or "input_ids" not in rows.inputs:
        raise InputError(f"{name} trains on text, and the calibration rows hold no input_ids")


def tuned(walk: Walk, key: str, watch: Stopwatch) -> tuple[Walk, str]:
    """Find where training starts, and train; returns the walk that takes the result, and its key."""
    first = walk.aside(StartWalk, "starts")
    if not walk.work.solving_needs_calibration:
        first.calibration = None
    records, _, _ = first.run(key)
    for name, seconds in seconds_of(records).items():
        watch.add(name, seconds)
    place = walk.folder.path / "tuned.safetensors"
    with watch.during("tune"):
        if not place.exists():
            _train(walk, records, place)
    work = replace(walk.work, transforms=(), treatments=_unhealed(walk.work), mixes={})
    starts = {block.path: record.tensors for block, record in zip(_blocks(walk.source), records, strict=True)}
    second = replace(walk, work=work, visit=partial(BlockPlaced, starts=starts, trained=place))
    return second, f"{key}:{file_digest(place)}"


def _blocks(source: Source) -> list[Block]:
    return [block for chain in source.anatomy.chains for block in source.anatomy.blocks if block.chain == chain]


def _unhealed(work: Work) -> dict[str, tuple[Any, ...]]:
    """What was healed was healed before it was trained."""
    return {path: (*earlier, replace(last, heal=None)) for path, (*earlier, last) in work.treatments.items()}


# -- where training starts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """A block as the steps left it. found: the weight and the point that was found for it, by path. changed: all else that differs from the
    original, by disk key, in disk layout."""

    found: Mapping[str, tuple[Tensor, Encoded]]
    changed: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        # what was pruned is its own encoding, and a file holds no tensor twice
        tensors, forms = {f"changed|{key}": tensor.clone() for key, tensor in self.changed.items()}, {}
        for name, (weight, encoded) in self.found.items():
            tensors[f"weight|{name}"] = weight
            tensors |= {f"{part}|{name}": tensor for part, tensor in encoded.tensors.items()}
            forms[name] = json.dumps({form: getattr(encoded, form) for form in _FORMS})
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=forms))

    @classmethod
    def read(cls, path: Path) -> Start:
        """What `save` wrote."""
        tensors, found = load_file(path), {}
        with safe_open(path, "pt") as file:
            forms = file.metadata() or {}
        for name, form in forms.items():
            weight = tensors.pop(f"weight|{name}")
            parts = {key.partition("|")[0]: tensors.pop(key) for key in [*tensors] if key.partition("|")[2] == name}
            found[name] = (weight, Encoded(tensors=parts, shape=(weight.shape[0], weight.shape[1]), **json.loads(form)))
        return cls(found, {key.partition("|")[2]: tensor for key, tensor in tensors.items()})


_FORMS = ("layout", "bits", "group_size", "standard", "simulated")


@dataclass
class BlockStart(BlockRun):
    """A block that remembers every weight with the point that was found for it."""

    found: dict[str, tuple[Tensor, Encoded]] = field(default_factory=dict)

    def _accept(self, linears: list[Linear], weight: Tensor, solution: Solution, gram: Tensor, tokens: int) -> None:
        super()._accept(linears, weight, solution, gram, tokens)
        start = 0
        for linear in linears:
            stop = start + linear.out_features
            self.found[linear.path] = (weight[start:stop], solution.encoded.rows(start, stop))
            start = stop


@dataclass
class StartWalk(Walk):
    """The walk that solves; nothing is written but where training starts."""

    visit: Callable[..., BlockRun] = BlockStart

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        with local.during("forward"):
            run = self._compress(block, calls.get("calibration"), streams, local)
        place = self.folder.tensors_path(key)
        with local.during("write"):
            Start(run.found, run.view.replacements()).save(place)
        return BlockRecord(key, place, (), tuple(run.warnings), local.seconds, {})


# -- training ------------------------------------------------------------------------------------------------------------


def _train(walk: Walk, records: Sequence[BlockRecord], place: Path) -> None:
    """Train, and leave the codes and scales of every matrix in `place`."""
    tuner, setting = walk.work.tuner, walk.setting
    assert tuner is not None and walk.calibration is not None
    network = Network.of(walk, [Start.read(record.tensors) for record in records], tuner)
    state = walk.folder.path / "training.safetensors"
    losses = train(network, walk.calibration.rows, tuner.schedule, state, setting.seed, title=tuner.name)
    count = max(1, len(losses) // 10)
    events.note(f"{tuner.name}: the loss went from {sum(losses[:count]) / count:.4g} to {sum(losses[-count:]) / count:.4g}")
    tensors = {}
    with torch.no_grad():
        for path, matrix in network.matrices.items():
            encoded = matrix.encoded()
            tensors |= {f"{part}|{path}": tensor.cpu().contiguous() for part, tensor in encoded.tensors.items()}
    write_atomic(place, lambda temporary: save_file(tensors, temporary))
    state.unlink(missing_ok=True)
    return_free_memory()


def _found_anew(walk: Walk, path: str) -> Reading:
    """What is done to inputs on grids that each call finds for itself. Fixed grids are found after training, when inputs are what they will
    be."""
    activation = walk.work.activation(path) if walk.packing.rounds(path) else None
    return Reading() if activation is None or activation.outline.scale is not None else Reading(rounding=activation.outline)


@dataclass(frozen=True)
class Way:
    """A model's way from rows to logits: its blocks with what each is called with, and all else. hidden: the rows that reach the first."""

    shell: Shell
    chain: str
    inputs: Mapping[str, Tensor]
    hidden: Tensor
    blocks: Sequence[nn.Module]
    calls: Sequence[Call]

    @classmethod
    def of(cls, walk: Walk, source: Source, changed: Sequence[Mapping[str, Tensor]] | None = None) -> Way:
        """That of the calibration rows of a walk; changed: of each block in order, tensors that are not the model's own, by disk key."""
        setting, rows, device = walk.setting, walk.calibration, torch.device(walk.setting.device)
        assert rows is not None
        blocks, chain, shell, inputs = _blocks(source), source.anatomy.chains[0], source.shell(torch.float32), dict(rows.inputs)
        hidden = enter(shell, inputs, chain, Streams(), "calibration", setting.batch, setting.dtype)
        noted = shell.calls({name: tensor[:1] for name, tensor in inputs.items()}, {})
        replaced = [{}] * len(blocks) if changed is None else changed
        modules = [source.block(block, setting.dtype, device, values) for block, values in zip(blocks, replaced, strict=True)]
        return cls(shell, chain, inputs, hidden, modules, [noted[block.path].to(device, setting.dtype) for block in blocks])

    def logits(self, rows: Int[Tensor, "batch"], hidden: Tensor | None = None) -> Float[Tensor, "tokens vocabulary"]:
        """Of some rows; hidden: what leaves the last block, where it is there already."""
        if hidden is None:
            hidden = self.hidden[rows]
            for module, call in zip(self.blocks, self.calls, strict=True):
                hidden = run_block(module, hidden, call)
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        return self.shell.outputs(inputs, {self.chain: hidden.to(torch.float32)}).flatten(0, -2)


@dataclass
class Network:
    """The whole model, block after block: as the steps left it with every tuned matrix where it may be, and as it was.

    A block's inner values are not kept for the gradients but computed again.
    """

    tuner: Tuner
    way: Way
    original: Way | None
    targets: Int[Tensor, "rows tokens"]
    linears: list[dict[str, nn.Module]]
    matrices: dict[str, Trained]

    @classmethod
    def of(cls, walk: Walk, starts: Sequence[Start], tuner: Tuner) -> Network:
        """The network of a walk; starts: of its blocks, in order."""
        source, rows, device = walk.source, walk.calibration, torch.device(walk.setting.device)
        assert rows is not None
        way = Way.of(walk, source, [start.changed for start in starts])
        linears = []
        for module, block in zip(way.blocks, _blocks(source), strict=True):
            here = linear_modules(module, block)
            change_readings(here, partial(_found_anew, walk))
            linears.append({path: inner for path, inner in here.items() if path in walk.work.tuned})
        matrices = {
            path: _begun(walk, path, start.found[path], device) for start in starts for path in start.found if path in walk.work.tuned
        }
        original = Way.of(walk, walk.original or source) if tuner.reference else None
        return cls(tuner, way, original, causal_targets(rows.inputs["input_ids"]), linears, matrices)

    def parameters(self) -> dict[str, Tensor]:
        """Those of every matrix."""
        return {f"{name}.{path}": tensor for path, matrix in self.matrices.items() for name, tensor in matrix.parameters.items()}

    def settle(self) -> None:
        """Bring every matrix back to where it may be."""
        for matrix in self.matrices.values():
            matrix.settle()

    def loss(self, rows: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
        """The mean over the tokens of these rows."""
        targets = self.targets[rows].flatten()
        counted = targets != IGNORED
        found = self.way.logits(rows, self._through(self.way.hidden[rows]))[counted]
        expected = None
        if self.original is not None:
            with torch.no_grad():
                expected = self.original.logits(rows)[counted]
        return self.tuner.loss(found, expected, targets[counted].to(found.device)).mean()

    def _through(self, hidden: Tensor) -> Tensor:
        for module, linears, call in zip(self.way.blocks, self.linears, self.way.calls, strict=True):

            def run(hidden: Tensor, module: nn.Module = module, linears: dict[str, nn.Module] = linears, call: Call = call) -> Tensor:
                weights = {inner: self.matrices[path].values() for path, inner in linears.items()}
                return run_with_weights(module, hidden, call, weights)

            hidden = checkpoint(run, hidden, use_reentrant=False)
        return hidden


def _begun(walk: Walk, path: str, found: tuple[Tensor, Encoded], device: torch.device) -> Trained:
    """A matrix as it is trained: on the grid that it was solved into, else its values, along few directions where the step says so."""
    (weight, start), tuner = found, walk.work.tuner
    codes = walk.work.treatments[path][-1].target.codes
    if codes is not None:
        return GridWeight(weight.to(device), start, codes)
    values = start.decode().to(device)
    assert tuner is not None
    return LowRankWeight(values, tuner.rank, walk.setting.seed) if tuner.rank else FreeWeight(values)


# -- the walk that takes what was trained ----------------------------------------------------------------------------------


@dataclass
class BlockPlaced(BlockRun):
    """A block whose matrices are known. starts: the file of what the steps made of each block, by path; trained: that of what training made
    of all matrices."""

    starts: Mapping[str, Path] = field(default_factory=dict)
    trained: Path = Path()

    def __post_init__(self) -> None:
        self.start = Start.read(self.starts[self.view.block.path])
        self.view.resume(self.start.changed, set(self.start.found))
        super().__post_init__()

    def _solve_alike(self, wanted: list[Linear], gram: Tensor, tokens: int) -> None:
        for linear in wanted:
            weight, before = self.start.found[linear.path]
            weight, encoded = weight.to(self.device), self._trained(linear.path, before)
            values = encoded.decode().to(self.device)
            lost = row_forms(weight - before.decode().to(self.device), gram).clamp_min(0)
            energy = float(row_forms(weight, gram).sum())
            details = {"error_before_tuning": float(lost.sum()) / energy if energy > 0 and math.isfinite(energy) else 0.0}
            loss = row_forms(weight - values, gram).clamp_min(0)
            self._accept([linear], weight, Solution(values, encoded, loss, details=details), gram, tokens)
        self._install({linear.path for linear in wanted})

    def _trained(self, path: str, before: Encoded) -> Encoded:
        """What training made of a matrix; what it was before where it was not trained."""
        if path not in self.work.tuned:
            return before
        with safe_open(self.trained, "pt") as file:
            return replace(before, tensors={part: file.get_tensor(f"{part}|{path}") for part in before.tensors})
