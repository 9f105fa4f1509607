"""One block: take statistics, rewrite spaces, solve stage after stage, and pass the rows on.

`stage` order sends all calibration rows through the block in one forward pass; a hook at each stage takes the Gram matrix of what reaches
it, solves, puts the new weights in, and lets the pass go on, so later stages see earlier ones compressed. `block` order takes all
statistics first, in small batches, solves everything, and then passes the rows on: two passes and less memory.

An expert that fewer tokens reached than its input is wide has no Gram matrix of full rank. It is calibrated on the inputs of all experts
of its block instead: its gate and up read them as they are, its down reads what the expert makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from thrifty.base.anatomy import Block, Linear, Space, Stage
from thrifty.base.errors import RunError
from thrifty.base.events import warn
from thrifty.base.memory import return_free_memory
from thrifty.base.records import Encoded, Problem, Solution
from thrifty.core.activations import Histogram
from thrifty.core.channels import ChannelHistogram
from thrifty.core.linalg import row_forms
from thrifty.core.reading import Reading
from thrifty.core.statistics import Statistics
from thrifty.models import Call, linear_modules, run_block, run_with_weights, set_weight
from thrifty.pipeline.readings import CHUNK, change_readings, gather
from thrifty.pipeline.steps import Work
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.view import BlockView
from thrifty.pipeline.watching import look, watching
from thrifty.weights.base import Activation, Treatment, hold, solve


@dataclass(frozen=True)
class LayerReport:
    """What happened to one linear; a row of the certificate."""

    name: str
    method: str
    bits: float
    sparsity: float
    error: float
    relative_error: float
    tokens: int
    simulated: bool = False
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unhealed:
    """A solved matrix that is healed once its block is solved: its weight, the point that was found, and the Gram matrix of its input."""

    weight: Tensor
    encoded: Encoded
    gram: Tensor
    tokens: int


@dataclass
class BlockRun:
    """The state of one block on its way through the walk.

    call: what the block's forward gets besides hidden states; None where no rows go through it. dtype: type of the calibration pass.
    batch: rows that go through at once. few: how many tokens reached an expert's space, where the inputs of all experts stand in.
    reference: the rows of the original model, where something is healed. expected: what the original block makes of them.
    unhealed: what is healed once the block is solved, by path. values, channels: what the inputs of a space were, where a
    grid for them is fixed, or one for each channel.
    """

    view: BlockView
    call: Call | None
    work: Work
    dtype: torch.dtype
    batch: int
    order: Literal["stage", "block"]
    device: torch.device
    seed: int
    watch: Stopwatch = field(default_factory=Stopwatch)
    reports: dict[str, LayerReport] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    few: dict[str, int] = field(default_factory=dict)
    reference: Tensor | None = None
    expected: Tensor | None = None
    unhealed: dict[str, Unhealed] = field(default_factory=dict)
    values: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, ChannelHistogram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.block: Block = self.view.block
        self._load()

    def _load(self) -> None:
        """The block as it stands, in the calibration type."""
        self.module = self.view.source.block(self.block, self.dtype, self.device, self.view.replacements())
        self.linears = linear_modules(self.module, self.block)
        change_readings(self.linears, self.view.reading)

    def compress(self, rows: Tensor) -> Tensor:
        """Compress the block; returns the rows as the compressed block puts them out."""
        if self.reference is not None:
            self.expected = self.forward(self.reference)
        out = self._compress(rows)
        if not self.unhealed or self.expected is None:
            return out
        with self.watch.during("heal"):
            self._heal(rows, self.expected)
        return self.forward(rows)

    def _compress(self, rows: Tensor) -> Tensor:
        statistics: dict[str, Statistics] | None = None
        solved = {linear.path for linear in self.block.linears if self.work.solves(linear)}
        if any(path in chosen for chosen in self.work.transforms for path in self.view.linears):
            statistics = self._transform(rows)
            self.view.settle(set(self.view.linears) - solved)
            self._load()
            if self.values or self.channels:  # they were those of the inputs before the rewrite
                self.values, self.channels, statistics = {}, {}, None
        if not solved:
            return self.forward(rows)
        if self.order == "stage":
            return self._solve_in_passing(rows)
        if statistics is None:
            statistics = self._collect(rows)
        for stage in self.block.stages:
            self._solve(stage, statistics)
        return self.forward(rows)

    def compress_without_rows(self) -> None:
        """Solve every stage as if each input counted the same: for methods that look at the weights alone."""
        for stage in self.block.stages:
            wanted = [linear for linear in stage.linears if self.work.solves(linear)]
            self._solve_group(wanted, torch.eye(stage.reads.width, device=self.device), 0)
            self._round(stage)

    def forward(self, rows: Tensor) -> Tensor:
        """The rows through the block as it stands, batch by batch."""
        return passed(self.module, rows, self.call, self.batch, self.device)

    def _batches(self, rows: Tensor) -> Iterator[Tensor]:
        return batches(rows, self.batch, self.device)

    # -- statistics ----------------------------------------------------------------------------------------------------

    def _collect(self, rows: Tensor) -> dict[str, Statistics]:
        """Statistics of every space of the block, in one pass, and in a second one where an expert saw too few tokens."""
        gathered: dict[str, Statistics] = {}
        read = {stage.reads.name for stage in self.block.stages}

        def keep(space: Space, inputs: Tensor) -> None:
            with self.watch.during("gram"):
                taken = gather(inputs, self._reading(space))
                self._observe(space, inputs)
            gathered[space.name] = gathered[space.name].merge(taken) if space.name in gathered else taken

        def keep_shared(space: Space, inputs: Tensor) -> None:
            if space.name not in read:  # else the stage of the shared expert, which reads the same, has counted them
                keep(space, inputs)

        look(self.block, self.module, self._batches(rows), self.call, lambda stage, inputs: keep(stage.reads, inputs), keep_shared)
        self._stand_in(gathered, rows)
        return gathered

    def _stand_in(self, gathered: dict[str, Statistics], rows: Tensor) -> None:
        """Replace the statistics of experts that too few tokens reached by those over the inputs of all experts."""
        starved = [stage for stage in self.block.stages if self._starved(stage, gathered)]
        again = {stage.reads.name: gathered[stage.reads.within] for stage in starved if stage.reads.within in gathered}
        replayed = [stage for stage in starved if stage.reads.within is None]

        def replay(_: Space, inputs: Tensor) -> None:
            with self.watch.during("gram"):
                for stage in replayed:
                    name, taken = stage.reads.name, self._as_if_chosen(stage, inputs)
                    again[name] = again[name].merge(taken) if name in again else taken

        if replayed:
            look(self.block, self.module, self._batches(rows), self.call, lambda *_: None, replay)
        for stage in starved:
            if stage.reads.name in again:
                self._replace(stage, gathered, again[stage.reads.name])

    def _starved(self, stage: Stage, seen: dict[str, Statistics]) -> bool:
        """Whether a stage belongs to an expert and fewer tokens reached it than its input is wide."""
        if stage.linears[0].expert is None or not any(self.work.solves(linear) for linear in stage.linears):
            return False
        own = seen.get(stage.reads.name)
        return own is None or own.tokens < stage.reads.width

    def _as_if_chosen(self, stage: Stage, inputs: Tensor) -> Statistics:
        """Statistics of the neurons of an expert, as the module stands, if the router had sent it all `inputs`."""
        expert = self.module.get_submodule(stage.linears[0].path.rpartition(".")[0].removeprefix(self.block.path + "."))
        total = Statistics.empty(stage.reads.width, self.device)
        for chunk in inputs.reshape(-1, inputs.shape[-1]).split(CHUNK // 4):  # an expert holds three tensors of its width at once
            total = total.merge(gather(expert.neurons(chunk)))
        return total

    def _replace(self, stage: Stage, seen: dict[str, Statistics], by: Statistics) -> None:
        name = stage.reads.name
        tokens = seen[name].tokens if name in seen else 0
        if by.tokens > tokens:
            self.few[name] = tokens
            seen[name] = by

    def _transform(self, rows: Tensor) -> dict[str, Statistics]:
        """Apply the transforms, step by step, to every space that suits them; returns the statistics after them."""
        statistics = self._collect(rows)
        for position in range(len(self.work.transforms)):
            with self.watch.during("transform"):
                known = self._rewrite(position, statistics)
            if not known and position + 1 < len(self.work.transforms):  # the next may look at what does not follow
                self._load()
                self.values, self.channels = {}, {}
                statistics = self._collect(rows)
        return statistics

    def _rewrite(self, position: int, statistics: dict[str, Statistics]) -> bool:
        """One step's transforms; keeps `statistics` up to date. Returns whether all of them follow from what was known."""
        known = True
        for space in self.block.spaces:
            transform = self.work.transform_for(position, space)
            seen = statistics.get(space.name)
            if transform is None or seen is None or not transform.suits(space):
                continue
            if transform.while_running and not all(map(self.view.packing.turns, space.consumers)):
                continue
            weights = [self.view.read(path).to(self.device) for path in space.consumers]
            rewrite = transform.rewrite(space, weights, seen, self.work.treatment_for(space))
            if rewrite is None:
                continue
            exact = self.view.apply(rewrite.to("cpu")).to(self.device)
            known = known and exact.by_channel
            for name in statistics:
                if name == space.name or self._within(name) == space.name:
                    statistics[name] = statistics[name].under(exact)
        return known

    def _within(self, name: str) -> str | None:
        return next((stage.reads.within for stage in self.block.stages if stage.reads.name == name), None)

    # -- solving -------------------------------------------------------------------------------------------------------

    def _solve_in_passing(self, rows: Tensor) -> Tensor:
        routed: list[Tensor] = []
        shared: dict[str, Statistics] = {}

        def settle(stage: Stage, seen: dict[str, Statistics]) -> None:
            if routed and self._starved(stage, seen):
                with self.watch.during("gram"):
                    within = stage.reads.within
                    self._replace(stage, seen, self._as_if_chosen(stage, routed[0]) if within is None else shared[within])
            self._solve(stage, seen)

        def take(stage: Stage, inputs: Tensor) -> None:
            with self.watch.during("gram"):
                seen = {stage.reads.name: gather(inputs, self._reading(stage.reads))}
                self._observe(stage.reads, inputs)
            settle(stage, seen)

        def keep(space: Space, inputs: Tensor) -> None:
            with self.watch.during("gram"):
                shared[space.name] = gather(inputs)
            routed.append(inputs)

        with watching(self.block, self.linears, self.module, take, keep):
            out = run_block(self.module, rows.to(self.device), self.call).to(rows.device)
        for stage in self.block.stages:
            if any(linear.path not in self.reports and self.work.solves(linear) for linear in stage.linears):
                settle(stage, {})  # no token reached it
        return out

    def _solve(self, stage: Stage, statistics: dict[str, Statistics]) -> None:
        """Solve the linears of one stage from what is known of their input."""
        wanted = [linear for linear in stage.linears if self.work.solves(linear)]
        if not wanted:
            return
        gram, tokens = self._gram(stage, statistics)
        return_free_memory(gram.nbytes)  # what the last stage left scattered in the heap would stand beside what this one takes
        self._solve_group(wanted, gram, tokens)
        self._round(stage)

    def _solve_group(self, wanted: list[Linear], gram: Tensor, tokens: int) -> None:
        with self.watch.during("solve"):
            self._solve_alike(wanted, gram, tokens)

    def _solve_alike(self, wanted: list[Linear], gram: Tensor, tokens: int) -> None:
        for treatments, linears in alike(wanted, self.work.treatments):
            paths = [linear.path for linear in linears]
            weight = torch.cat([self.view.read(path).to(self.device) for path in paths])
            solution = solve_all(weight, gram, tokens, treatments, ", ".join(paths), self.seed)
            self.warnings.extend(solution.warnings)
            self._accept(linears, weight, solution, gram, tokens)
        self._install({linear.path for linear in wanted})

    def _observe(self, space: Space, inputs: Tensor) -> None:
        """Remember the values of a space that is rounded to a fixed grid."""
        asked = [activation for activation in map(self._activation, space.consumers) if activation is not None and activation.calibrated]
        inputs = self._reading(space).turned(inputs) if asked else inputs
        if any(not activation.by_channel for activation in asked):
            taken = Histogram.of(inputs)
            self.values[space.name] = self.values[space.name].merge(taken) if space.name in self.values else taken
        if any(activation.by_channel for activation in asked):
            each = ChannelHistogram.of(inputs)
            self.channels[space.name] = self.channels[space.name].merge(each) if space.name in self.channels else each

    def _reading(self, space: Space) -> Reading:
        """How the consumers of a space turn it, before they round it."""
        return Reading(next((self.view.turns[path] for path in space.consumers if path in self.view.turns), 0))

    def _activation(self, path: str) -> Activation | None:
        """What a linear's inputs are rounded to, as far as readers of the result do it."""
        return self.work.activation(path) if self.view.packing.rounds(path) else None

    def _gram(self, stage: Stage, statistics: dict[str, Statistics]) -> tuple[Tensor, int]:
        """The Gram matrix for a stage; says so when it is not of the stage's own tokens."""
        space = stage.reads
        names = ", ".join(linear.path for linear in stage.linears)
        seen = statistics.get(space.name)
        if seen is None:
            self._warn(f"{names}: no calibration tokens reached it; solved without calibration (every input counts the same)")
            return torch.eye(space.width, device=self.device), 0
        if space.name in self.few:
            made = "" if space.within else "what it makes of "
            self._warn(
                f"{names}: only {self.few[space.name]} calibration tokens reached this expert, fewer than its {space.width} inputs; "
                f"it was calibrated on {made}the inputs of all experts together"
            )
        return seen.gram, seen.tokens

    def _accept(self, linears: list[Linear], weight: Tensor, solution: Solution, gram: Tensor, tokens: int) -> None:
        """Put a solution for stacked matrices in place and report each of them."""
        energies = row_forms(weight, gram)
        start = 0
        for linear in linears:
            stop = start + linear.out_features
            encoded = solution.encoded.rows(start, stop).cpu()
            values = solution.values[start:stop]
            if self.work.healer(linear.path) is not None:
                self.unhealed[linear.path] = Unhealed(weight[start:stop], encoded, gram, tokens)
            kept = self.view.write(linear.path, values.cpu(), encoded).to(self.device)
            if kept.equal(values):
                error = float(solution.row_loss[start:stop].sum())
            else:
                error = float(row_forms(weight[start:stop] - kept, gram).sum().clamp_min(0))
            energy = float(energies[start:stop].sum())
            if not (math.isfinite(error) and math.isfinite(energy)):
                largest = f"{float(weight[start:stop].abs().max()):.3g}"
                raise RunError(
                    f"{linear.path}: its error is no finite number (its largest weight is {largest}); skip it, or mend the model"
                )
            details = dict(solution.details)
            stored = self.view.packed.get(linear.path)
            simulated = (encoded.simulated and stored is None) or linear.path in self.view.packing.alone
            if encoded.simulated and simulated:
                details["fixed_width_bits"] = encoded.fixed_width_bits
            activation = self._activation(linear.path)
            if activation is not None:
                details["input_bits"] = float(activation.outline.bits)
            if linear.path in self.view.turns:
                details["inputs_turned_by"] = float(self.view.turns[linear.path])
            self.reports[linear.path] = LayerReport(
                name=linear.path,
                method=self.work.names[linear.path],
                bits=stored.bits if stored is not None else encoded.bits if simulated else self.view.dense_bits(linear),
                sparsity=float((kept == 0).float().mean()),
                error=error,
                relative_error=error / energy if energy > 0 else 0.0,
                tokens=tokens,
                simulated=simulated,
                details=details,
            )
            start = stop

    def _heal(self, rows: Tensor, expected: Tensor) -> None:
        """Change what was found for the matrices of the block so that its output comes nearer to the original's."""
        for healer in dict.fromkeys(self.work.healer(path) for path in self.unhealed):
            chosen = {path: found for path, found in self.unhealed.items() if self.work.healer(path) == healer}

            def output(matrices: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
                weights = {self.linears[path]: matrix for path, matrix in matrices.items()}
                return run_with_weights(self.module, hidden.to(self.device), self.call, weights)

            starts = {path: (found.weight, found.encoded) for path, found in chosen.items()}
            healed, figures = healer.heal(starts, output, rows, expected, self.seed)
            for path, encoded in healed.items():
                found, linear = chosen[path], self.view.linears[path]
                values = encoded.decode()
                loss = row_forms(found.weight - values, found.gram).clamp_min(0)
                details = {**self.reports[path].details, **figures}
                self._accept([linear], found.weight, Solution(values, encoded, loss, details=details), found.gram, found.tokens)
            self._install(set(chosen))

    def _round(self, stage: Stage) -> None:
        """From now on inputs of the stage are rounded where a step says so."""
        for linear in stage.linears:
            activation = self._activation(linear.path)
            if activation is not None and linear.path not in self.view.roundings:
                seen = (self.channels if activation.by_channel else self.values).get(stage.reads.name)
                self.view.roundings[linear.path] = activation.fit(seen)

    def _install(self, paths: set[str]) -> None:
        """Let the module compute with the view's matrices."""
        for path in paths:
            set_weight(self.linears[path], self.view.weights[path])

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        warn(message, self.block.path)


def batches(rows: Tensor, size: int, device: torch.device | str) -> Iterator[Tensor]:
    """The rows on the device, so many at a time; before each batch what the last one left scattered in the heap is given back."""
    for batch in rows.split(size):
        return_free_memory()
        yield batch.to(device)


def passed(module: nn.Module, rows: Tensor, call: Call | None, batch: int, device: torch.device | str) -> Tensor:
    """Rows through a block, so many at a time; they come back to where they were."""
    out, start = rows.new_empty(0), 0
    for hidden in batches(rows, batch, device):
        part = run_block(module, hidden, call)
        if start == 0:  # made once: parts that are put together at the end lie there twice
            out = torch.empty(rows.shape[0], *part.shape[1:], dtype=part.dtype, device=rows.device)
        out[start : start + part.shape[0]] = part
        start += part.shape[0]
    return out


def alike(linears: list[Linear], by_path: Mapping[str, tuple[Treatment, ...]]) -> Iterator[tuple[tuple[Treatment, ...], list[Linear]]]:
    """Linears that are treated alike go into one problem, unless their rows compete within a matrix."""
    groups: list[tuple[tuple[Treatment, ...], list[Linear]]] = []
    for linear in linears:
        treatments = by_path[linear.path]
        alone = any(treatment.alone for treatment in treatments)
        same = None if alone else next((group for group in groups if group[0] == treatments), None)
        if same is None:
            groups.append((treatments, [linear]))
        else:
            same[1].append(linear)
    yield from groups


def solve_all(weight: Tensor, gram: Tensor, tokens: int, treatments: tuple[Treatment, ...], name: str, seed: int) -> Solution:
    """One treatment after the other; what an earlier one pruned stays pruned."""
    solution = solve(Problem(weight, gram, tokens, name, seed), treatments[0])
    for treatment in treatments[1:]:
        mask = solution.values != 0
        if not bool(mask.all()):
            treatment = replace(treatment, target=hold(treatment.target, mask))
        solution = solve(Problem(solution.values, gram, tokens, name, seed), treatment)
        solution = replace(solution, row_loss=row_forms(weight - solution.values, gram).clamp_min(0))
    return solution
