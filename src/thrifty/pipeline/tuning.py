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
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from thrifty.base import events
from thrifty.base.anatomy import Block, Linear, Stage
from thrifty.base.errors import InputError
from thrifty.base.memory import return_free_memory
from thrifty.base.records import Encoded, Solution
from thrifty.base.store import file_digest, write_atomic
from thrifty.core.clipped import ClippedInputs, ClippedWeight
from thrifty.core.linalg import row_forms
from thrifty.core.reading import Reading
from thrifty.core.trainable import FreeVector, FreeWeight, GridWeight, LowRankWeight, Trained
from thrifty.core.trained_sums import SumsWeight
from thrifty.data import Rows
from thrifty.measure.language import IGNORED, causal_targets
from thrifty.models import Call, Shell, Source, linear_modules, run_block, run_with_weights
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.folder import BlockRecord, seconds_of
from thrifty.pipeline.readings import change_readings
from thrifty.pipeline.sharing import pieces
from thrifty.pipeline.start import Start
from thrifty.pipeline.steps import Work
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.streams import Streams, enter
from thrifty.pipeline.walk import Walk
from thrifty.train import train
from thrifty.tune.base import FeatureTuner, PredictionTuner, TokenTuner, Tuner
from thrifty.weights.base import Activation

VECTOR = "vector"
"""What the names of trained biases and norms begin with, in the file of what was trained."""

TELLING = 20
"""Steps from which on the loss at both ends is worth comparing; each step sees other rows."""


def check_tuning(source: Source, work: Work, rows: Rows | None) -> None:
    """Raise InputError where a model or its rows are not such that they can be trained on."""
    if work.tuner is None:
        return
    anatomy, name = source.anatomy, work.tuner.name
    if anatomy.kind not in work.tuner.kinds or len(anatomy.chains) != 1:
        raise InputError(f"{name} needs {work.tuner.wants}; {anatomy.architecture} is {anatomy.kind}")
    if not work.tuner.reads_logits:
        return
    if anatomy.kind == "vision" and anatomy.head is None:
        raise InputError(f"{name} needs {work.tuner.wants}; {anatomy.architecture} has no head that says what it sees")
    if anatomy.kind not in ("vision", "diffusion") and (rows is None or "input_ids" not in rows.inputs):
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
    assert walk.work.tuner is not None
    _tell(walk.work.tuner, place)
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


@dataclass
class BlockStart(BlockRun):
    """A block that remembers every weight with the point that was found for it."""

    found: dict[str, tuple[Tensor, Encoded]] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    latent: dict[str, Tensor] = field(default_factory=dict)

    def _round(self, stage: Stage) -> None:
        super()._round(stage)
        for linear in stage.linears:
            rounding = self.view.roundings.get(linear.path)
            if rounding is not None and rounding.has_ends:
                moments = torch.tensor(self.values[stage.reads.name].moments())
                assert rounding.scale is not None and rounding.zero_point is not None, "a fixed grid has both"
                self.inputs[linear.path] = torch.cat([rounding.scale, rounding.zero_point, moments])

    def _accept(self, linears: list[Linear], weight: Tensor, solution: Solution, gram: Tensor, tokens: int) -> None:
        super()._accept(linears, weight, solution, gram, tokens)
        start = 0
        for linear in linears:
            stop = start + linear.out_features
            self.found[linear.path] = (weight[start:stop], solution.encoded.rows(start, stop))
            if solution.latent is not None:
                self.latent[linear.path] = solution.latent[start:stop]
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
            Start(run.found, run.view.replacements(), run.inputs, run.latent).save(place)
        return BlockRecord(key, place, (), tuple(run.warnings), local.seconds, {})


# -- training ------------------------------------------------------------------------------------------------------------


def _train(walk: Walk, records: Sequence[BlockRecord], place: Path) -> None:
    """Train, and leave the codes and scales of every matrix in `place`."""
    tuner, setting = walk.work.tuner, walk.setting
    assert tuner is not None and walk.calibration is not None
    network = Network.of(walk, [Start.read(record.tensors) for record in records], tuner)
    state = walk.folder.path / "training.safetensors"
    losses = train(network, walk.calibration.rows, tuner.schedule, state, setting.seed, title=tuner.name)
    tensors = {}
    with torch.no_grad():
        for path, matrix in network.matrices.items():
            encoded = matrix.encoded()
            tensors |= {f"{part}|{path}": tensor.cpu().contiguous() for part, tensor in encoded.tensors.items()}
        for path, vectors in network.vectors.items():
            for name, vector in vectors.items():
                tensors[f"{VECTOR}|{walk.source.disk_name(f'{path}.{name}')}"] = vector.values().cpu()
        for path, grid in network.inputs.items():
            rounding = grid.settled()
            tensors[f"inputs|{path}"] = torch.cat([rounding.scale, rounding.zero_point])
    told = {"losses": json.dumps(losses)}
    write_atomic(place, lambda temporary: save_file(tensors, temporary, metadata=told))
    state.unlink(missing_ok=True)
    return_free_memory()


def _tell(tuner: Tuner, place: Path) -> None:
    """Say how the loss went; a warning where training did harm."""
    with safe_open(place, "pt") as file:
        losses = json.loads(file.metadata()["losses"])
    count = max(1, len(losses) // 10)
    first, last = fmean(losses[:count]), fmean(losses[-count:])
    events.note(f"{tuner.name}: the loss went from {first:.4g} to {last:.4g}")
    if len(losses) >= TELLING and last > first:
        events.warn(f"{tuner.name}: the loss rose from {first:.4g} to {last:.4g}; a rate below {tuner.rate:g} may help, or more steps")


def _found_anew(walk: Walk, path: str) -> Reading:
    """What is done to inputs on grids that each call finds for itself. Fixed grids are found after training, when inputs are what they will
    be, but for those that are trained."""
    activation = walk.work.activation(path) if walk.packing.rounds(path) else None
    return Reading() if activation is None or activation.outline.scale is not None else Reading(rounding=activation.outline)


@dataclass(frozen=True)
class Way:
    """A model's way from rows to what it is judged by: its blocks with what each is called with, and all else. hidden: the rows that reach
    the first."""

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

    def entering(self, rows: Int[Tensor, "batch"]) -> Float[Tensor, "batch *length width"]:
        """Some rows where the blocks are; all of them stay in the memory of the machine."""
        return self.hidden[rows].to(next(self.blocks[0].parameters()).device)

    def last(self, rows: Int[Tensor, "batch"]) -> Float[Tensor, "batch *length width"]:
        """Some rows as they leave the last block."""
        hidden = self.entering(rows)
        for module, call in zip(self.blocks, self.calls, strict=True):
            hidden = run_block(module, hidden, call)
        return hidden

    def features(self, hidden: Tensor) -> Float[Tensor, "batch tokens width"]:
        """What leaves the last block, normalized."""
        return self.shell.normed(hidden.to(torch.float32)).flatten(1, -2)

    def outputs(self, rows: Int[Tensor, "batch"], hidden: Tensor) -> Float[Tensor, "batch *shape"]:
        """What the model makes of some rows that leave the last block as `hidden`: logits, or the noise in them."""
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        return self.shell.outputs(inputs, {self.chain: hidden.to(torch.float32)})


@dataclass
class Network:
    """The whole model, block after block: as the steps left it with every tuned matrix where it may be, and as it was.

    targets: the next tokens, where it is judged by them. leading: tokens of an image before its patches. vectors: biases and norms that are
    trained, by path of the block and their names inside it. A block's inner values are not kept for the gradients but computed again.
    """

    tuner: Tuner
    way: Way
    original: Way | None
    targets: Int[Tensor, "rows tokens"] | None
    leading: int
    blocks: Sequence[Block]
    linears: list[dict[str, nn.Module]]
    matrices: dict[str, Trained]
    vectors: dict[str, dict[str, FreeVector]]
    inputs: dict[str, ClippedInputs]

    @classmethod
    def of(cls, walk: Walk, starts: Sequence[Start], tuner: Tuner) -> Network:
        """The network of a walk; starts: of its blocks, in order."""
        source, rows, device = walk.source, walk.calibration, torch.device(walk.setting.device)
        assert rows is not None
        way = Way.of(walk, source, [start.changed for start in starts])
        linears, inputs = [], {}
        for module, block, start in zip(way.blocks, _blocks(source), starts, strict=True):
            here, own = linear_modules(module, block), _clipped(walk, block, start, device)
            change_readings(here, lambda path, own=own: own.get(path) or _found_anew(walk, path))
            inputs |= own
            linears.append({path: inner for path, inner in here.items() if path in walk.work.tuned})
        matrices = {path: _begun(walk, path, start, device) for start in starts for path in start.found if path in walk.work.tuned}
        original = Way.of(walk, walk.original or source) if tuner.reference else None
        by_tokens = tuner.reads_logits and "input_ids" in rows.inputs
        targets = causal_targets(rows.inputs["input_ids"]) if by_tokens else None
        vectors = {
            block.path: _vectors(source, block, module) if all(linear.path in matrices for linear in block.linears) else {}
            for block, module in zip(_blocks(source), way.blocks if tuner.vectors else (), strict=False)
        }
        return cls(tuner, way, original, targets, _leading(way, source), _blocks(source), linears, matrices, vectors, inputs)

    def parameters(self) -> dict[str, Tensor]:
        """Those of every matrix, of its inputs, and of every vector."""
        found = {f"{name}.{path}": tensor for path, part in self._parts() for name, tensor in part.parameters.items()}
        return found | {f"{path}.{name}": vector.offset for path, here in self.vectors.items() for name, vector in here.items()}

    def state(self) -> dict[str, Tensor]:
        """What changes with every matrix, and its inputs, besides."""
        return {f"{name}.{path}": tensor for path, part in self._parts() for name, tensor in part.state.items()}

    def _parts(self) -> list[tuple[str, Trained | ClippedInputs]]:
        """All that is trained, each once: matrices of one stage share the grid of their inputs."""
        grids = {id(grid): (f"inputs.{path}", grid) for path, grid in self.inputs.items()}
        return [*self.matrices.items(), *grids.values()]

    def settle(self) -> dict[str, Bool[Tensor, "*shape"]]:
        """Bring every matrix back to where it may be."""
        for grid in self.inputs.values():
            grid.settle()
        return {f"{name}.{path}": moved for path, matrix in self.matrices.items() for name, moved in matrix.settle().items()}

    def factors(self) -> dict[str, float]:
        """Of the rate of each parameter: that of its matrix, of which those that lie in one count in the mean."""
        rates, alphas = self.tuner.rates, {}
        assert rates is not None
        for block in self.blocks:
            for linear in block.linears:
                if linear.path in self.matrices:
                    found = pieces(block, linear, self.matrices[linear.path].values())
                    alphas[linear.path] = fmean(rates.alpha(piece) for piece in found.values())
        chosen = rates.factors(alphas)
        return {f"{name}.{path}": chosen[path] for path, matrix in self.matrices.items() for name in matrix.parameters}

    def loss(self, rows: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
        """The mean over these rows, or over their tokens."""
        hidden, expected = self._through(self.way.entering(rows)), None
        if self.original is not None:
            expected = self.original.last(rows)
        if isinstance(self.tuner, FeatureTuner):
            assert self.original is not None and expected is not None
            with torch.no_grad():
                features = self.original.features(expected)
            return self.tuner.loss(self.way.features(hidden), features, self.leading).mean()
        return self._by_outputs(rows, hidden, expected)

    def _by_outputs(self, rows: Int[Tensor, "batch"], hidden: Tensor, expected: Tensor | None) -> Float[Tensor, ""]:
        found = self.way.outputs(rows, hidden)
        if self.original is not None and expected is not None:
            with torch.no_grad():
                expected = self.original.outputs(rows, expected)
        if self.way.shell.anatomy.kind == "diffusion":
            assert isinstance(self.tuner, PredictionTuner) and expected is not None
            return self.tuner.prediction_loss(found, expected).mean()
        assert isinstance(self.tuner, TokenTuner)
        found, expected = found.flatten(0, -2), None if expected is None else expected.flatten(0, -2)
        if self.targets is None:
            return self.tuner.loss(found, expected, torch.full((len(found),), IGNORED, device=found.device)).mean()
        targets = self.targets[rows].flatten()
        counted = targets != IGNORED
        expected = None if expected is None else expected[counted]
        return self.tuner.loss(found[counted], expected, targets[counted].to(found.device)).mean()

    def _through(self, hidden: Tensor) -> Tensor:
        for block, module, linears, call in zip(self.blocks, self.way.blocks, self.linears, self.way.calls, strict=True):

            def run(
                hidden: Tensor, block: Block = block, module: nn.Module = module, linears: dict[str, nn.Module] = linears, call: Call = call
            ) -> Tensor:
                weights = {inner: self.matrices[path].values() for path, inner in linears.items()}
                vectors = {name: vector.values() for name, vector in self.vectors.get(block.path, {}).items()}
                return run_with_weights(module, hidden, call, weights, vectors)

            hidden = checkpoint(run, hidden, use_reentrant=False)
        return hidden


def _vectors(source: Source, block: Block, module: nn.Module) -> dict[str, FreeVector]:
    """Biases and norms of a block that lie on disk as they are in memory, by their names inside it; not those that are used outside, too,
    where they would not be seen to change."""
    shared = tuple(path + "." for path in source.anatomy.shared)
    named = {name: f"{block.path}.{name}" for name, parameter in module.named_parameters() if parameter.ndim == 1}
    own = {name: source.disk_name(path) for name, path in named.items() if not path.startswith(shared)}
    return {name: FreeVector(module.get_parameter(name).detach().to(torch.float32)) for name, key in own.items() if key is not None}


def _leading(way: Way, source: Source) -> int:
    """Tokens that stand before the patches of an image; 0 where that is not told by the sizes of both."""
    pixels, side = way.inputs.get("pixel_values"), getattr(source.config, "patch_size", None)
    if pixels is None or not isinstance(side, int):
        return 0
    return max(0, way.hidden[0, ..., 0].numel() - (pixels.shape[-2] // side) * (pixels.shape[-1] // side))


def _clipped(walk: Walk, block: Block, start: Start, device: torch.device) -> dict[str, ClippedInputs]:
    """Where the step trains the ends of grids by statistics, those of inputs on a fixed grid, by path of the matrices that read them."""
    tuner, found = walk.work.tuner, {}
    assert tuner is not None
    for stage in block.stages if tuner.ends == "statistics" else ():
        alike: dict[Activation, ClippedInputs] = {}
        for path in (linear.path for linear in stage.linears if linear.path in start.inputs and linear.path in walk.work.tuned):
            activation = walk.work.activation(path)
            assert activation is not None, "what was rounded has a rounding"
            scale, zero_point, mean, deviation = start.inputs[path].split(1)
            if activation not in alike:
                rounding = replace(activation.outline, scale=scale, zero_point=zero_point)
                alike[activation] = ClippedInputs(rounding, float(mean), float(deviation), device)
            found[path] = alike[activation]
    return found


def _begun(walk: Walk, path: str, block: Start, device: torch.device) -> Trained:
    """A matrix as it is trained: on the grid or with the codebooks that it was solved into, else its values, along few directions where the
    step says so."""
    (weight, start), tuner = block.found[path], walk.work.tuner
    assert tuner is not None
    weight = block.latent.get(path, weight)
    start = replace(start, tensors={part: tensor.to(device) for part, tensor in start.tensors.items()})
    codes = walk.work.treatments[path][-1].target.codes
    if codes is not None:
        weight = weight.to(device)
        return GridWeight(weight, start, codes) if tuner.ends == "learned" else ClippedWeight(weight, start, codes, tuner.ends)
    if start.layout == "additive":
        return SumsWeight(start, tuner.moves)
    values = start.decode()
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
        self.view.resume({**self.start.changed, **self._vectors()}, set(self.start.found))
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

    def _round(self, stage: Stage) -> None:
        with safe_open(self.trained, "pt") as file:
            for path in (linear.path for linear in stage.linears if f"inputs|{linear.path}" in file.keys()):  # noqa: SIM118 (no mapping)
                activation = self._activation(path)
                assert activation is not None, "what was trained is rounded"
                scale, zero_point = file.get_tensor(f"inputs|{path}").split(1)
                self.view.roundings[path] = replace(activation.outline, scale=scale, zero_point=zero_point)
        super()._round(stage)

    def _trained(self, path: str, before: Encoded) -> Encoded:
        """What training made of a matrix; what it was before where it was not trained."""
        if path not in self.work.tuned:
            return before
        with safe_open(self.trained, "pt") as file:
            return replace(before, tensors={part: file.get_tensor(f"{part}|{path}") for part in before.tensors})

    def _vectors(self) -> dict[str, Tensor]:
        """What training made of biases and norms, by disk key, as it will be stored."""
        source = self.view.source
        with safe_open(self.trained, "pt") as file:
            own = {key.partition("|")[2]: key for key in file.keys() if key.startswith(f"{VECTOR}|")}  # noqa: SIM118 (no mapping)
            return {
                key: file.get_tensor(own[key]).to(source.tensors[key].dtype).to(torch.float32)
                for key in source.block_keys(self.view.block)
                if key in own
            }
