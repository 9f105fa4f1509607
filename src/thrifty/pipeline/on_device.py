"""What a run holds on a device of its own, worked out from shapes alone.

One block is there at a time, with the rows that pass through it, Gram matrices, and what is being solved. Everything else stays in the
memory of the machine: the rows between blocks, what is outside the blocks (embeddings, head, logits), solved matrices, and results. Only
training has all blocks there. So this is another sum than `pipeline.price` makes, of the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from thrifty.base.anatomy import Block, Stage
from thrifty.models import Source
from thrifty.pipeline.job import Job
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.price import (
    KEPT,
    Load,
    between_blocks,
    gathering,
    healed,
    inside_block,
    looks_at_rows,
    rating,
    stacked,
    trained,
    waiting_at,
)
from thrifty.pipeline.sample import appetite, appetite_of_rewriting
from thrifty.pipeline.shaping import Shaping
from thrifty.pipeline.steps import Work

WORKSPACE = 32 << 20
"""Bytes that torch gives the library of matrix products on a device, at most: on the newest ones; a quarter of that on others."""


def device_parts(source: Source, work: Work, setting: Setting, load: Load) -> dict[str, int]:
    """Bytes on the device in each phase of a walk that changes matrices; the phases are never there together."""
    blocks = source.anatomy.blocks
    of_blocks = {
        "sharing": (_sharing, bool(work.shares)),
        "transforming": (_transforming, bool(work.transforms)),
        "solving": (_solving, bool(work.treatments or work.mixes)),
        "healing": (_healing, work.heals),
        "passing": (_passing, load.rows > 0),
        "evaluating": (_evaluating, load.evaluation_rows > 0),
    }
    found = {
        name: max((of_one(source, block, work, setting, load) for block in blocks), default=0)
        for name, (of_one, there) in of_blocks.items()
        if there
    }
    return found | ({} if work.tuner is None else {"tuning": _tuning(source, work, setting, load)})


def device_parts_of_shaping(source: Source, shaping: Shaping, setting: Setting, load: Load) -> dict[str, int]:
    """The same of a structural step, whose walk takes batches as they are."""
    setting, nothing = replace(setting, order="block"), Work.of(())
    products = "gram" in shaping.step.needs
    looking = 0
    for block in source.anatomy.blocks:
        module = source.block_parameters(block) * setting.dtype.itemsize
        grams = sum(4 * stage.reads.width**2 for stage in block.stages) if products else 0
        grams += max((gathering(stage, _tokens(block, setting, load)) for stage in block.stages), default=0) if products else 0
        rows = _entering(source, block, setting, load) + inside_block(source, block, load, min(setting.batch, load.rows), setting.dtype)
        # the block that was looked at is still there when one row checks that of the result, in float32
        looking = max(looking, module + max(grams + rows, source.block_parameters(block) * 4))
    parts = device_parts(source, nothing, setting, load)
    return {"cutting": looking, **parts}


def device_memory(parts: Mapping[str, int]) -> int:
    """Bytes on the device at the fullest moment."""
    return WORKSPACE + max(parts.values(), default=0)


def parts_of_job(job: Job, *, least: bool = False) -> dict[str, int]:
    """Bytes of each phase of a job on its device. least: where it can go on in smaller batches, with what it comes to then."""
    load = job.device_load or job.load
    if job.shaping is not None:
        return device_parts_of_shaping(job.source, job.shaping, job.setting, load)
    asked = device_parts(job.source, job.work, job.setting, load)
    if not least:
        return asked
    # in block order the Gram matrices of all stages are there at once, so that fewer rows can even take more
    smallest = device_parts(job.source, job.work, replace(job.setting, batch=1, order="block"), load)
    return min(asked, smallest, key=device_memory)


# -- phases ----------------------------------------------------------------------------------------------------------------


def _module(source: Source, block: Block, setting: Setting) -> int:
    return source.block_parameters(block) * setting.dtype.itemsize


def _tokens(block: Block, setting: Setting, load: Load, rows: int | None = None) -> int:
    """Vectors of some rows in a block; of a batch where none are named."""
    known = load.calibration.get(block.path)
    return (min(setting.batch, load.rows) if rows is None else rows) * (known.tokens if known else load.tokens)


def _entering(source: Source, block: Block, setting: Setting, load: Load, rows: int | None = None) -> int:
    """Bytes of some rows as they enter a block; of a batch where none are named."""
    return _tokens(block, setting, load, rows) * source.anatomy.hidden_size * setting.dtype.itemsize


def _held(block: Block) -> int:
    """Gram matrices of all stages of a block."""
    return sum(stage.reads.width**2 * 4 for stage in block.stages)


def _batch(source: Source, block: Block, setting: Setting, load: Load) -> int:
    """A batch of rows on its way through a block, at the fullest moment."""
    rows = min(setting.batch, load.rows)
    return _entering(source, block, setting, load, rows) + inside_block(source, block, load, rows, setting.dtype)


def _sharing(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """While a block is looked at: its weights are read on the processor, only rows pass here."""
    return _module(source, block, setting) + (_batch(source, block, setting, load) if looks_at_rows(work) else 0)


def _transforming(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """While spaces are rewritten: all Gram matrices are there, and the block once more when it is loaded anew."""
    module, peak = _module(source, block, setting), 0
    sizes = {linear.path: linear.out_features for linear in block.linears}
    for space in block.spaces:
        rows = sum(sizes.get(path, 0) for path in space.consumers)
        for position in range(len(work.transforms)):
            transform = work.transform_for(position, space)
            if transform is not None and transform.suits(space):
                wants = appetite_of_rewriting(transform, work.treatment_for(space), space.width)
                peak = max(peak, 4 * rows * space.width + 4 * space.width**2 + wants.bytes(rows, space.width))
    return module + _held(block) + max(peak, module)


def _solving(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """While Gram matrices are taken and stages are solved; what is solved leaves the device."""
    in_passing = setting.order == "stage"
    apart = not in_passing or bool(work.transforms or work.mixes)
    held = _held(block) if apart else 0
    entering, peak = _entering(source, block, setting, load, load.rows) if in_passing else 0, 0
    for stage in block.stages:
        if apart:
            some = replace(setting, order="block")
            batch = _entering(source, block, setting, load) + waiting_at(source, block, stage, some, load)
            peak = max(peak, held + batch + gathering(stage, _tokens(block, setting, load)))
        alive = entering + waiting_at(source, block, stage, setting, load) if in_passing else 0
        if in_passing:
            peak = max(peak, held + alive + gathering(stage, _tokens(block, setting, load, load.rows)))
        peak = max(peak, held + alive + _treating(stage, work, sums=not apart))
    return _module(source, block, setting) + peak


def _treating(stage: Stage, work: Work, *, sums: bool) -> int:
    """While the linears of a stage are solved. sums: as in `price`."""
    width, peak = stage.reads.width, 0
    for treatments, rows in stacked(stage, work):
        solver = max((appetite(treatment, width).bytes(rows, width) for treatment in treatments), default=0)
        matrix = 4 * rows * width
        peak = max(peak, matrix + max(matrix, solver))  # the matrices of a stage are there twice only while they are stacked
    return peak + (8 if sums else 4) * width**2


def _healing(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """While the matrices of a solved block are tuned together, in batches of the method's own size."""
    matrices, rows = healed(block, work, load)
    if not matrices:
        return 0
    inside = _entering(source, block, setting, load, rows) + KEPT * inside_block(source, block, load, rows, setting.dtype)
    return _module(source, block, setting) + matrices + inside


def _tuning(source: Source, work: Work, setting: Setting, load: Load) -> int:
    """While the whole model is trained: all blocks, those of the original beside them; head and logits stay with the processor."""
    assert work.tuner is not None
    blocks = source.anatomy.blocks
    rows = min(work.tuner.batch, load.rows)
    modules = sum(_module(source, block, setting) for block in blocks) * (2 if work.tuner.reference else 1)
    matrices = sum(trained(linear, work) for linear in source.anatomy.linears if linear.path in work.tuned)
    inside = KEPT * max((inside_block(source, block, load, rows, setting.dtype) for block in blocks), default=0)
    return modules + matrices + max(between_blocks(source, rows, setting, load) + inside, rating(source, work))


def _passing(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """While rows pass through the solved block: a batch of them, or all in stage order."""
    rows = load.rows if setting.order == "stage" else min(setting.batch, load.rows)
    inside = _entering(source, block, setting, load, rows) + inside_block(source, block, load, rows, setting.dtype)
    return _module(source, block, setting) + inside


def _evaluating(source: Source, block: Block, work: Work, setting: Setting, load: Load) -> int:
    """While a batch of rows passes through a block in float32: the original's, then the result's."""
    known, rows = load.evaluation.get(block.path), min(setting.batch, load.evaluation_rows)
    if known:
        inside = rows * (known.peak + known.tokens * source.anatomy.hidden_size * 4)
    else:
        widest = max((stage.reads.width for stage in block.stages), default=0)
        inside = rows * load.evaluation_tokens * (5 * source.anatomy.hidden_size + 3 * widest) * 4
    return source.block_parameters(block) * 4 + inside
