"""What a run costs: memory, disk and output size, worked out from shapes alone.

Each phase of the walk holds known tensors; the peak is the largest phase on top of what stays throughout. How long it takes is another
page's (`pipeline.duration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from thrifty.base.anatomy import Anatomy, Block, Linear, Stage
from thrifty.export.compressed import packed_bytes
from thrifty.models import Source
from thrifty.pipeline.block import CHUNK
from thrifty.pipeline.footprint import Footprint
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.plan import Cost, Setting
from thrifty.pipeline.score import rows_at_once
from thrifty.pipeline.steps import Work

FIRST_CALLS = 45 << 20
"""Bytes that the first calls of the numeric libraries take and keep, about: thread pools, scratch, code."""

SCATTERED = 64 << 20
"""Bytes that lie freed but scattered between others in the allocator's hands, at most."""

LOST = 0.6
"""The share by which small tensors (`footprint.HEAP`) that come and go batch after batch spread out in the heap, about."""

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


def price(source: Source, work: Work, setting: Setting, load: Load, resident: int, output: int) -> Cost:
    """The cost of a run, but for its time. resident: bytes this process holds before it starts. output: bytes of the result's weights."""
    parts = memory_parts(source, work, setting, load)
    phase = max(_scattered(name, parts[name]) for name in ("entering", "solving", "passing", "evaluating", "scoring"))
    memory = resident + FIRST_CALLS + parts["rows"] + phase
    # the finished blocks stay until the result stands beside them; the rows at the last two boundaries are both there for a moment
    disk = output - source.shell_bytes() + max(output + parts["rows"], 2 * parts["rows"])
    disk += parts["rows"] if work.mixes else 0  # those that left the last block when the targets were tried
    return Cost(memory, disk, output, parts={"resident": resident, **parts})


def _scattered(name: str, size: int) -> int:
    """A phase with what its allocations lose; where blocks are passed, most of that is in the footprint."""
    return size + min(SCATTERED, size // (8 if name in ("passing", "evaluating") else 4))


def memory_parts(source: Source, work: Work, setting: Setting, load: Load) -> dict[str, int]:
    """Bytes of what stays (`rows`) and of each phase of the walk."""
    anatomy = source.anatomy
    width, size = anatomy.hidden_size, setting.dtype.itemsize
    streams = _streams(anatomy, load.calibration, load.rows) or load.calibration_tokens * width * size
    streams += 2 * (_streams(anatomy, load.evaluation, load.evaluation_rows) or load.scored_tokens * width * 4)
    shell = source.shell_parameters() * 4
    batch_tokens = setting.batch * max(load.tokens, load.evaluation_tokens)
    return {
        "rows": streams,
        "entering": shell + load.tokens * load.vocabulary * 4 + 4 * batch_tokens * width * 4,
        "solving": max((_solving(source, block, work, setting, load) for block in anatomy.blocks), default=0),
        "passing": max((_passing(source, block, setting, load) for block in anatomy.blocks), default=0),
        "evaluating": max((_evaluating(source, block, work, setting, load) for block in anatomy.blocks), default=0),
        "scoring": shell + _logits(load, setting),
    }


def _solving(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """The peak while the stages of a block are solved."""
    size = setting.dtype.itemsize
    module = source.block_parameters(block) * size
    tokens = load.calibration_tokens if setting.order == "stage" else setting.batch * load.tokens
    done, peak = 0, 0
    # Gram matrices that are taken before the first stage is solved
    held = sum(stage.reads.width**2 * 4 for stage in block.stages) if setting.order == "block" or work.transforms or work.mixes else 0
    for stage in block.stages:
        if block.path in load.calibration:
            known = load.calibration[block.path]
            inside = _rows_at_once(setting, load) * known.stages.get(stage.reads.name, known.peak)
        else:
            inside = waiting(block, stage, tokens, source.anatomy.hidden_size, size)
        width = stage.reads.width
        gram = 3 * width**2 * 4
        chunk = min(CHUNK, tokens) * width * (4 + 4)
        solved = [linear for linear in stage.linears if work.solves(linear)]
        matrix = sum(linear.out_features * linear.in_features for linear in solved)
        solver = 4 * matrix * 4 + 3 * width**2 * 4
        peak = max(peak, done + inside + gram + max(chunk, solver))
        # what stays of a solved matrix: its values in float32 and its codes
        done += matrix * 5
    return module + held + peak


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
        scheme = packing.schemes.get(linear.path)
        if scheme is not None:
            packed += 1
            total += (
                packed_bytes(linear.out_features, linear.in_features, scheme, packing.scale_types(linear)[0])
                - source.tensors[linear.source].bytes
            )
    return total + HEADER * (len(source.tensors) + 2 * packed)


def active(block: Block, linear: Linear) -> float:
    """The share of tokens that a linear sees."""
    if linear.expert is None or block.experts is None:
        return 1.0
    return block.experts.experts_per_token / block.experts.num_experts
