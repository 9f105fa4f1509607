"""What a run costs: memory, disk and output size, worked out from shapes alone.

Each phase of the walk holds known tensors; the peak is the largest phase on top of what stays throughout. How long it takes is another
page's (`pipeline.duration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from thrifty.base.anatomy import Anatomy, Block, Linear, Stage
from thrifty.core.channels import CHANNEL_BYTES
from thrifty.models import Source
from thrifty.pipeline.block import alike
from thrifty.pipeline.footprint import Footprint
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.plan import Cost, Setting
from thrifty.pipeline.readings import CHUNK
from thrifty.pipeline.sample import appetite
from thrifty.pipeline.score import rows_at_once
from thrifty.pipeline.shaping import Shaping
from thrifty.pipeline.steps import Work
from thrifty.pipeline.weighing import rows_followed
from thrifty.weights.base import Treatment

FIRST_CALLS = 45 << 20
"""Bytes that the first calls of the numeric libraries take and keep, about: thread pools, scratch, code."""

SCATTERED = 64 << 20
"""Bytes that lie freed but scattered between others in the allocator's hands, at most."""

LOST = 0.75
"""The share by which small tensors (`footprint.HEAP`) that come and go batch after batch spread out in the heap, about."""

KEPT = 4
"""What a block keeps of a row for gradients, in parts of what it holds of it at the fullest moment, about."""

TUNED = 60
"""Bytes that an entry of a matrix takes while it is tuned: the weight, what is found of it, and what gradients need, in float32."""

TRAINED = 40
"""The same while all matrices are trained together, and their moments."""

ADAPTED, DIRECTION = 12, 16
"""The same where it is trained along few directions, and bytes of an entry of these, with their moments and gradients."""

FOLLOWING = 24
"""Bytes that an entry of a matrix takes while a loss is followed back: weight, gradient, sums of both, and what they are made into."""

LOGITS_HELD = 10
"""How many numbers training holds for every logit: of both models, what the loss makes of them, and gradients."""

HEADER = 110
"""Bytes that one tensor takes in a safetensors header, about."""


@dataclass(frozen=True)
class Load:
    """How much data a run carries: rows and tokens a row of the calibration and the evaluation, and the vocabulary (0 without a head).

    calibration, evaluation: what blocks hold of one such row (`pipeline.footprint`), by path; empty where that is not known.
    """

    rows: int
    tokens: int
    evaluation_rows: int
    evaluation_tokens: int
    vocabulary: int
    calibration: Mapping[str, Footprint] = field(default_factory=dict)
    evaluation: Mapping[str, Footprint] = field(default_factory=dict)

    @property
    def calibration_tokens(self) -> int:
        """All calibration tokens."""
        return self.rows * self.tokens

    @property
    def scored_tokens(self) -> int:
        """All evaluation tokens."""
        return self.evaluation_rows * self.evaluation_tokens


PHASES = ("entering", "sharing", "following", "solving", "healing", "tuning", "passing", "evaluating", "scoring")
"""What follows each other, and is never in memory together."""


def price(source: Source, work: Work, setting: Setting, load: Load, resident: int, output: int) -> Cost:
    """The cost of a run, but for its time. resident: bytes this process holds before it starts. output: bytes of the result's weights."""
    parts = memory_parts(source, work, setting, load)
    phase = max(_scattered(name, parts[name]) for name in PHASES)
    memory = resident + FIRST_CALLS + parts["rows"] + phase
    # the finished blocks stay until the result stands beside them; the rows at the last two boundaries are both there for a moment
    disk = output - source.shell_bytes() + max(output + parts["rows"], 2 * parts["rows"])
    # those that left the last block when targets were tried, and when blocks were looked at
    disk += parts["rows"] * (bool(work.mixes) + looks_at_rows(work))
    # the directions that a mix judges by, in float32, of some rows as they leave each block
    disk += between_blocks(source, min(rows_followed(source, work), load.rows), setting, load) * 4 // setting.dtype.itemsize
    disk += parts["rows"] + _kept_for_training(source, work) if work.tuner is not None else 0
    return Cost(memory, disk, output, parts={"resident": resident, **parts})


def price_shaping(source: Source, shaping: Shaping, setting: Setting, load: Load, resident: int) -> Cost:
    """The cost of a structural step, but for its time."""
    blocks, size = source.anatomy.blocks, setting.dtype.itemsize
    products = "gram" in shaping.step.needs
    looking = 0
    for block in blocks:
        grams = sum(8 * stage.reads.width**2 for stage in block.stages) if products else 0
        inside = inside_block(source, block, load, min(setting.batch, load.rows), setting.dtype)
        # the module, what a method reads of it in float32, the same again while it is judged or checked, and the tensors old and new
        held = source.block_parameters(block) * (size + 8) + 2 * source.block_bytes(block)
        looking = max(looking, held + grams + inside)
    matrices = max(source.block_parameters(block) * FOLLOWING + shaping.product_bytes(block) for block in source.anatomy.blocks)
    looking = max(looking, _following(source, shaping.follows, setting, load, matrices))
    parts = {**memory_parts(source, Work.of(()), replace(setting, order="block"), load), "solving": looking}
    memory = resident + FIRST_CALLS + parts["rows"] + max(_scattered(name, parts[name]) for name in PHASES)
    result = shaping.resized.source
    output = sum(info.bytes for info in result.tensors.values()) + HEADER * len(result.tensors)
    disk = output - source.shell_bytes() + max(output + parts["rows"], 2 * parts["rows"])
    if shaping.undecided:  # rows that left the last block of the pass that decides, and what it finds
        disk += parts["rows"] + shaping.aside_bytes
    return Cost(memory, disk, output, parts={"resident": resident, **parts})


def _following(source: Source, follows: int, setting: Setting, load: Load, matrices: int) -> int:
    """The peak while a loss, or a direction, is followed back through the model, in float32: what enters each block, and the logits of a
    row or what gradients need of it in a block, and of the matrices there."""
    rows = min(follows, load.rows)
    if not rows:
        return 0
    between = between_blocks(source, rows, setting, load) * 4 // setting.dtype.itemsize
    inside = KEPT * max(inside_block(source, block, load, 1, torch.float32) for block in source.anatomy.blocks)
    return between + max(matrices + inside, source.shell_parameters() * 4 + LOGITS_HELD * load.tokens * load.vocabulary * 4)


def _scattered(name: str, size: int) -> int:
    """A phase with what its allocations lose; where blocks are passed, most of that is in the footprint."""
    return size + min(SCATTERED, size // (8 if name in ("passing", "evaluating") else 4))


def memory_parts(source: Source, work: Work, setting: Setting, load: Load) -> dict[str, int]:
    """Bytes of what stays (`rows`) and of each phase of the walk."""
    anatomy = source.anatomy
    width, size = anatomy.hidden_size, setting.dtype.itemsize
    streams = _streams(anatomy, load.calibration, load.rows) or load.calibration_tokens * width * size
    streams *= 2 if work.heals else 1  # beside the calibration rows the same ones of the original model
    streams += 2 * (_streams(anatomy, load.evaluation, load.evaluation_rows) or load.scored_tokens * width * 4)
    shell = source.shell_parameters() * 4 * (1 if source.original is source else 2)  # of the original, too, that judges
    batch_tokens = setting.batch * max(load.tokens, load.evaluation_tokens)
    return {
        "rows": streams,
        "entering": shell + load.tokens * load.vocabulary * 4 + 4 * batch_tokens * width * 4,
        "sharing": max((_sharing(source, block, work, setting, load) for block in anatomy.blocks), default=0) if work.shares else 0,
        "following": _following(
            source,
            rows_followed(source, work),
            setting,
            load,
            max((4 * source.block_parameters(block) for block in anatomy.blocks), default=0),
        ),
        "solving": max((_solving(source, block, work, setting, load) for block in anatomy.blocks), default=0),
        "healing": max((_healing(source, block, work, setting, load) for block in anatomy.blocks), default=0) if work.heals else 0,
        "tuning": _tuning(source, work, setting, load),
        "passing": max((_passing(source, block, setting, load) for block in anatomy.blocks), default=0),
        "evaluating": max((_evaluating(source, block, work, setting, load) for block in anatomy.blocks), default=0),
        "scoring": shell + _logits(load, setting),
    }


def _solving(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """The peak while Gram matrices are taken and the stages of a block are solved."""
    module = source.block_parameters(block) * setting.dtype.itemsize
    # Gram matrices of all stages are taken before the first is solved
    apart = setting.order == "block" or bool(work.transforms or work.mixes)
    held = sum(stage.reads.width**2 * 4 for stage in block.stages) if apart else 0
    held += _counting(block, work)
    in_passing = setting.order == "stage"
    tokens = load.calibration[block.path].tokens if block.path in load.calibration else load.tokens
    done, peak = 0, 0
    for stage in block.stages:
        alive = waiting_at(source, block, stage, setting, load)
        if apart:
            peak = max(peak, held + alive + gathering(stage, min(setting.batch, load.rows) * tokens))
        if in_passing:
            peak = max(peak, held + done + alive + gathering(stage, load.rows * tokens))
        peak = max(peak, held + done + (alive if in_passing else 0) + _treating(stage, work, sums=not apart))
        # what stays of a solved matrix: its values in float32 and its codes
        done += 5 * sum(linear.out_features * linear.in_features for linear in stage.linears if work.solves(linear))
    return module + peak


def _counting(block: Block, work: Work) -> int:
    """Bytes while values of inputs are counted channel by channel: those of all stages, and a new batch and both together of one."""
    asked = [stage for stage in block.stages if any((one := work.activation(linear.path)) and one.by_channel for linear in stage.linears)]
    counts = [stage.reads.width * CHANNEL_BYTES for stage in asked]
    return sum(counts) + 2 * max(counts, default=0)


def _sharing(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """The peak while a block is looked at: its matrices in float32, and what one of them takes or rows on their way through it."""
    pairs = [(treatment.allocator, linear) for treatment, linear in looked_at(block, work)]
    matrices = {linear.path: 4 * linear.out_features * linear.in_features for _, linear in pairs}
    most = max((allocator.working_bytes(linear.out_features, linear.in_features) for allocator, linear in pairs), default=0)
    if looks_at_rows(work):
        inside = inside_block(source, block, load, _rows_at_once(setting, load), setting.dtype)
        most = max(most, inside) + load.calibration_tokens * source.anatomy.hidden_size * setting.dtype.itemsize
    return source.block_parameters(block) * setting.dtype.itemsize + sum(matrices.values()) + most


def looked_at(block: Block, work: Work) -> list[tuple[Treatment, Linear]]:
    """Treatments whose sparsity is to be shared out, with each linear of a block that gets a share."""
    return [(treatment, linear) for treatment in work.shares for part in work.parts(block, treatment) for linear in part.linears]


def looks_at_rows(work: Work) -> bool:
    """Whether calibration rows pass through the model before sparsity is shared out."""
    return any(treatment.allocator is not None and treatment.allocator.calibrated for treatment in work.shares)


def waiting_at(source: Source, block: Block, stage: Stage, setting: Setting, load: Load) -> int:
    """Bytes of the rows that are on their way through a block when a stage is reached."""
    if block.path in load.calibration:
        known = load.calibration[block.path]
        return _rows_at_once(setting, load) * known.stages.get(stage.reads.name, known.peak)
    tokens = _rows_at_once(setting, load) * load.tokens
    return waiting(block, stage, tokens, source.anatomy.hidden_size, setting.dtype.itemsize)


def gathering(stage: Stage, tokens: int) -> int:
    """Bytes while so many tokens are added to a Gram matrix: the sum, the new part, and then both together or a chunk twice in float32."""
    square = stage.reads.width**2 * 4
    return 2 * square + max(square, min(CHUNK, tokens) * stage.reads.width * 8)


def _treating(stage: Stage, work: Work, *, sums: bool) -> int:
    """Bytes while the linears of a stage are solved, all that are treated alike at once. sums: whether its sum of products is alive and not
    counted elsewhere, beside the mean."""
    width, peak = stage.reads.width, 0
    for treatments, rows in stacked(stage, work):
        solver = max((appetite(treatment, width).bytes(rows, width) for treatment in treatments), default=0)
        peak = max(peak, rows * width * 8 + solver)  # the stacked matrix, and the one that it was read from
    return peak + (8 if sums else 4) * width**2


def stacked(stage: Stage, work: Work) -> list[tuple[tuple[Treatment, ...], int]]:
    """(how they are treated, their rows) of the linears of a stage that are solved together."""
    solved = [linear for linear in stage.linears if work.solves(linear)]
    return [(treatments, sum(linear.out_features for linear in linears)) for treatments, linears in alike(solved, work.treatments)]


def _healing(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """The peak while the matrices of a solved block are tuned together: what gradients need of some rows, and of each matrix."""
    matrices, rows = healed(block, work, load)
    if not matrices:
        return 0
    inside = KEPT * inside_block(source, block, load, rows, setting.dtype)
    leaving = 2 * load.calibration_tokens * source.anatomy.hidden_size * setting.dtype.itemsize
    return source.block_parameters(block) * setting.dtype.itemsize + matrices + inside + leaving


def healed(block: Block, work: Work, load: Load) -> tuple[int, int]:
    """(bytes of the matrices of a block that are tuned together, with their Gram matrices; rows that go through it at once); 0 of none."""
    healers = {linear.path: healer for linear in block.linears if (healer := work.healer(linear.path)) is not None}
    if not healers:
        return 0, 0
    grams = sum(stage.reads.width**2 * 4 for stage in block.stages if any(linear.path in healers for linear in stage.linears))
    entries = sum(linear.out_features * linear.in_features for linear in block.linears if linear.path in healers)
    return grams + entries * TUNED, min(max(healer.batch for healer in healers.values()), load.rows)


def _tuning(source: Source, work: Work, setting: Setting, load: Load) -> int:
    """The peak while the whole model is trained: itself, the original beside it, what gradients need of the matrices and of some rows."""
    if work.tuner is None:
        return 0
    blocks, size = source.anatomy.blocks, setting.dtype.itemsize
    rows = min(work.tuner.batch, load.rows)
    modules = sum(source.block_parameters(block) for block in blocks) * size * (2 if work.tuner.reference else 1)
    matrices = sum(trained(linear, work) for linear in source.anatomy.linears if linear.path in work.tuned)
    between = between_blocks(source, rows, setting, load)
    inside = KEPT * max((inside_block(source, block, load, rows, setting.dtype) for block in blocks), default=0)
    logits = LOGITS_HELD * rows * load.tokens * load.vocabulary * 4 if work.tuner.reads_logits else 0
    return source.shell_parameters() * 4 + modules + matrices + max(between + inside + logits, rating(source, work))


def between_blocks(source: Source, rows: int, setting: Setting, load: Load) -> int:
    """Bytes of some calibration rows as they leave each of the blocks, which training keeps."""
    blocks = source.anatomy.blocks
    known = [load.calibration[block.path].row for block in blocks if block.path in load.calibration]
    return rows * (sum(known) or len(blocks) * load.tokens * source.anatomy.hidden_size * setting.dtype.itemsize)


def rating(source: Source, work: Work) -> int:
    """Bytes that are held while one matrix is looked at for its rate: its values, their piece in double precision, and what that takes."""
    if work.tuner is None or work.tuner.rates is None:
        return 0
    shapes = [(linear.out_features, linear.in_features) for linear in source.anatomy.linears if linear.path in work.tuned]
    return max((16 * out * width + work.tuner.rates.cost(out, width)[1] for out, width in shapes), default=0)


def trained(linear: Linear, work: Work) -> int:
    """Bytes that a matrix takes while it is trained."""
    assert work.tuner is not None
    entries, target = linear.out_features * linear.in_features, work.treatments[linear.path][-1].target
    if target.masks and work.tuner.rank:
        return entries * ADAPTED + DIRECTION * work.tuner.rank * (linear.out_features + linear.in_features)
    return entries * TRAINED


def _kept_for_training(source: Source, work: Work) -> int:
    """Bytes on disk of where training starts, in float32, and of its state and result."""
    blocks = source.anatomy.blocks
    matrices = sum(linear.out_features * linear.in_features for linear in source.anatomy.linears if work.solves(linear))
    return 4 * sum(source.block_parameters(block) for block in blocks) + (4 + 1 + 12 + 1) * matrices


def _passing(source: Source, block: Block, setting: Setting, load: Load) -> int:
    """The peak while rows pass through the solved block: its matrices, what the rows are made into, and the rows that leave."""
    values = sum(linear.out_features * linear.in_features for linear in block.linears) * 5
    at_once = _rows_at_once(setting, load)
    inside = inside_block(source, block, load, at_once, setting.dtype)
    known = load.calibration.get(block.path)
    if known and setting.order == "block":
        inside += int(LOST * at_once * known.heap)
    leaving = load.rows * known.row if known else load.calibration_tokens * source.anatomy.hidden_size * setting.dtype.itemsize
    return source.block_parameters(block) * setting.dtype.itemsize + values + inside + leaving


def _evaluating(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    if load.scored_tokens == 0:
        return 0
    values = sum(linear.out_features * linear.in_features for linear in block.linears) * 5
    if block.path in load.evaluation:
        known = load.evaluation[block.path]
        inside = min(setting.batch, load.evaluation_rows) * int(known.peak + LOST * known.heap)
    else:
        widest = max((stage.reads.width for stage in block.stages), default=0)
        inside = setting.batch * load.evaluation_tokens * (4 * source.anatomy.hidden_size + 3 * widest) * 4
    return source.block_parameters(block) * 4 + values + inside


def inside_block(source: Source, block: Block, load: Load, rows: int, dtype: torch.dtype) -> int:
    """Bytes of what `rows` calibration rows are made into inside a block, at the fullest moment."""
    if block.path in load.calibration:
        return rows * load.calibration[block.path].peak
    tokens, hidden = rows * load.tokens, source.anatomy.hidden_size
    return max((activations(block, stage, tokens, hidden, dtype.itemsize) for stage in block.stages), default=0)


def _rows_at_once(setting: Setting, load: Load) -> int:
    """Calibration rows that are inside a block together."""
    return load.rows if setting.order == "stage" else min(setting.batch, load.rows)


def _streams(anatomy: Anatomy, known: Mapping[str, Footprint], rows: int) -> int:
    """Bytes of the rows of all chains, of which the finished ones are kept; 0 where it is not known."""
    last = {block.chain: block.path for block in anatomy.blocks}
    return rows * sum(known[path].row for path in last.values() if path in known)


def activations(block: Block, stage: Stage, tokens: int, hidden: int, size: int) -> int:
    """Bytes of the hidden states alive inside the block at the most crowded moment before `stage`.

    The residual stream, what the stage reads, and what it was made from: a gated product keeps three tensors of its width alive.
    """
    share = active(block, stage.linears[0])
    inner = stage.reads.width
    copies = 3 if inner != hidden else 2
    outputs = sum(linear.out_features for linear in stage.linears if linear.expert is None)
    return int(tokens * (3 * hidden + copies * inner * share + outputs) * size)


def waiting(block: Block, stage: Stage, tokens: int, hidden: int, size: int) -> int:
    """Bytes of the hidden states alive while `stage` is being solved: the rows, the residual stream, the normed one, and what it reads."""
    return int(tokens * (3 * hidden + stage.reads.width * active(block, stage.linears[0])) * size)


def _logits(load: Load, setting: Setting) -> int:
    # logits of both models; what the comparison makes of them is taken in small pieces
    rows = rows_at_once(setting.batch, load.evaluation_tokens, load.vocabulary)
    return 2 * rows * load.evaluation_tokens * load.vocabulary * 4


def output_bytes(source: Source, packing: Packing) -> int:
    """Bytes of the result's weight files: packed matrices, everything else as it is, and the headers."""
    total = sum(info.bytes for info in source.tensors.values())
    packed = 0
    for linear in source.anatomy.linears:
        if linear.path in packing.schemes:
            packed += 1
            plain = linear.out_features * linear.in_features * source.tensors[linear.source].dtype.itemsize
            total += packing.stored_bytes(linear) - plain
    return total + HEADER * (len(source.tensors) + 2 * packed)


def active(block: Block, linear: Linear) -> float:
    """The share of tokens that a linear sees."""
    if linear.expert is None or block.experts is None:
        return 1.0
    return block.experts.experts_per_token / block.experts.num_experts
