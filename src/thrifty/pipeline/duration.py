"""How long a run takes: the pieces of the walk, each as often as it is done, at the rates that the probe measured."""

from __future__ import annotations

import torch

from thrifty.base.anatomy import Block, Stage
from thrifty.models import Source
from thrifty.pipeline import speed
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.price import Load, active, looked_at, looks_at_rows, stacked
from thrifty.pipeline.probe import GRAM_TOKENS, GRAM_WIDTH, Rates
from thrifty.pipeline.sample import SIZES
from thrifty.pipeline.shaping import Shaping
from thrifty.pipeline.steps import Work
from thrifty.pipeline.weighing import rows_followed

FIXED = 4.0
"""Seconds that any run takes, about: reading the data, opening files, reading the result back, its pages and plots."""

FOLLOWED = 4
"""Passes through a block that a row takes whose loss is followed back: one before, one again, and twice as long for the gradients."""

DIRECTED = 3
"""The same where no gradients of matrices are taken."""

MOVED = 200
"""Bytes that a step of training moves for each entry of a matrix, about: value, gradient and moments, in float32 and in parts."""


def estimate_seconds(source: Source, work: Work, setting: Setting, load: Load, rates: Rates) -> float:
    """Seconds of the whole run."""
    blocks = source.anatomy.blocks
    total = sum(_compressing(block, work, setting, load, rates) + _evaluating(block, load, rates) for block in blocks)
    if work.mixes:
        followed = min(rows_followed(source, work), load.rows)
        total += sum(_choosing(block, work, setting, load, rates, followed) for block in blocks)
    if work.shares:
        total += sum(_sharing(block, work, setting, load, rates) for block in blocks)
    if work.tuner is not None:
        total += _tuning(source, work, setting, load, rates)
    return total + _around(source, load, rates)


def estimate_shaping(source: Source, shaping: Shaping, setting: Setting, load: Load, rates: Rates) -> float:
    """Seconds of a structural step: calibration rows pass each block before it is cut, where they are looked at, and after it; where
    something is decided for the whole model first, once or twice more through all of it."""
    twice = shaping.uneven and not shaping.follows
    passes = 2 if shaping.removed else 4 if twice and shaping.calibrated else 2 if shaping.calibrated else 0
    rows = passes * load.rows + FOLLOWED * min(shaping.follows, load.rows)
    total = 0.0
    for block in source.anatomy.blocks:
        total += rows * _row(block, load.tokens, setting.dtype, rates.calibration.get(block.path), rates)
        total += _evaluating(block, load, rates)
        if "gram" in shaping.step.needs:
            total += sum(_gram(block, stage, load, rates) for stage in block.stages)
    followed = min(shaping.follows, load.rows) * load.tokens * shaping.operations_of_token
    # what decides for the whole model is computed in double precision
    deciding = (followed + 2 * shaping.operations) / rates.multiply[torch.float32]
    return total + deciding + _around(source, load, rates)


def _around(source: Source, load: Load, rates: Rates) -> float:
    """Seconds of what is the same in all runs: scoring, writing and reading back, timing both models."""
    logits = 2 * 2.0 * load.scored_tokens * load.vocabulary * source.anatomy.hidden_size / rates.multiply[torch.float32]
    stored = sum(info.bytes for info in source.tensors.values())
    return 2 * logits + 4 * stored / rates.disk + _speed(source, load, rates) + FIXED


def _compressing(block: Block, work: Work, setting: Setting, load: Load, rates: Rates) -> float:
    looks = work.transforms or setting.order == "block"
    passes = 1 + (_look(block, setting, load) if looks else 0)
    total = passes * load.rows * _row(block, load.tokens, setting.dtype, rates.calibration.get(block.path), rates)
    total += _healing(block, work, load, setting, rates)
    for stage in block.stages:
        total += _gram(block, stage, load, rates) * (2 if work.transforms and setting.order == "stage" else 1)
        total += _solving(stage, work, rates)
    return total + _transforming(block, work, rates)


def _look(block: Block, setting: Setting, load: Load) -> float:
    """How much of a pass a look at what the stages read takes: all batches but the first stop where the last stage is reached."""
    if block.experts is not None or not block.stages:
        return 1.0
    sizes = [sum(linear.out_features * linear.in_features for linear in stage.linears) for stage in block.stages]
    return 1 - max(0, load.rows - setting.batch) / max(load.rows, 1) * sizes[-1] / sum(sizes)


def _healing(block: Block, work: Work, load: Load, setting: Setting, rates: Rates) -> float:
    """Seconds of healing, with the original's way through the block before it and the result's after it."""
    healers = dict.fromkeys(work.healer(linear.path) for linear in block.linears)
    rows = sum(healer.row_passes for healer in healers if healer is not None)
    rows += 2 * load.rows if rows else load.rows if work.heals else 0
    return rows * _row(block, load.tokens, setting.dtype, rates.calibration.get(block.path), rates)


def _tuning(source: Source, work: Work, setting: Setting, load: Load, rates: Rates) -> float:
    """Seconds of training (the original's pass, the trained model's, once more that for its gradients, and twice as long for these), and of
    the walk that takes what was trained, which solves nothing."""
    assert work.tuner is not None
    blocks = source.anatomy.blocks
    row = sum(_row(block, load.tokens, setting.dtype, rates.calibration.get(block.path), rates) for block in blocks)
    logits = 2.0 * load.tokens * load.vocabulary * source.anatomy.hidden_size / rates.multiply[torch.float32]
    logits = logits if work.tuner.reads_logits else 0.0
    passes = (5 if work.tuner.reference else 4) * row + (4 if work.tuner.reference else 3) * logits
    trained = [(linear.out_features, linear.in_features) for linear in source.anatomy.linears if linear.path in work.tuned]
    matrices = sum(out * width for out, width in trained)
    moving = matrices * MOVED / rates.read
    taking = load.rows * row + sum(_gram(block, stage, load, rates) for block in blocks for stage in block.stages)
    factors, rating = work.tuner.rates, 0.0
    if factors is not None:
        rating = -(-work.tuner.steps // factors.every) * sum(rates.scores[factors] * factors.cost(out, width)[0] for out, width in trained)
    return taking + rating + work.tuner.steps * (work.tuner.batch * passes + moving)


def _choosing(block: Block, work: Work, setting: Setting, load: Load, rates: Rates, followed: int) -> float:
    """Seconds in which every target of a `mix` is solved for and tried on some rows. followed: rows whose predictions are followed back."""
    row = _row(block, load.tokens, setting.dtype, rates.calibration.get(block.path), rates)
    total = (load.rows + DIRECTED * followed) * row
    mixed = [linear for linear in block.linears if linear.path in work.mixes]
    if mixed:
        total += _look(block, setting, load) * load.rows * row + sum(_gram(block, stage, load, rates) for stage in block.stages)
    for linear in mixed:
        mix, place = work.mixes[linear.path]
        others = [treatment for position, treatment in enumerate(work.treatments[linear.path]) if position != place]
        for option in range(len(mix.into)):
            total += min(mix.rows, load.rows) * row
            for treatment in (*others, mix.treatment(option)):
                total += rates.treatments[treatment].seconds(linear.out_features, linear.in_features)
    return total


def _sharing(block: Block, work: Work, setting: Setting, load: Load, rates: Rates) -> float:
    """Seconds in which a block is looked at before sparsity is shared out."""
    total = load.rows * _row(block, load.tokens, setting.dtype, rates.calibration.get(block.path), rates) if looks_at_rows(work) else 0.0
    for treatment, linear in looked_at(block, work):
        allocator = treatment.allocator
        total += rates.scores[allocator] * allocator.operations(linear.out_features, linear.in_features)
    return total


def _evaluating(block: Block, load: Load, rates: Rates) -> float:
    seconds = _row(block, load.evaluation_tokens, torch.float32, rates.evaluation.get(block.path), rates)
    return 2 * load.evaluation_rows * seconds


def _row(block: Block, tokens: int, dtype: torch.dtype, measured: float | None, rates: Rates) -> float:
    """Seconds of one row in a block."""
    if measured is not None:
        return measured
    products = sum(2.0 * linear.out_features * linear.in_features * active(block, linear) for linear in block.linears)
    return tokens * products / rates.multiply[dtype]


def _gram(block: Block, stage: Stage, load: Load, rates: Rates) -> float:
    if not rates.gram:
        return 0.0
    width = stage.reads.width
    timed = min(width, GRAM_WIDTH)
    tokens = load.calibration_tokens * active(block, stage.linears[0])
    return rates.gram[timed] * (width / timed) ** 2 * tokens / GRAM_TOKENS


def _solving(stage: Stage, work: Work, rates: Rates) -> float:
    """Linears that are treated alike are one matrix."""
    width = stage.reads.width
    return sum(rates.treatments[treatment].seconds(rows, width) for chosen, rows in stacked(stage, work) for treatment in chosen)


def _transforming(block: Block, work: Work, rates: Rates) -> float:
    shapes = {linear.path: linear for linear in block.linears}
    total = 0.0
    for position in range(len(work.transforms)):
        for space in block.spaces:
            growth = rates.transforms.get((work.transform_for(position, space), work.treatment_for(space)))
            if growth is not None and space.producers:
                rows = sum(shapes[path].out_features for path in space.consumers if path in shapes)
                total += growth.seconds(min(rows, SIZES[-1]), space.width)  # searches look at a sample of rows
    return total


def _speed(source: Source, load: Load, rates: Rates) -> float:
    """Seconds in which both models are timed side by side."""
    blocks = source.anatomy.blocks
    rounds = 2 * (1 + speed.ROUNDS)
    row = sum(_row(block, load.evaluation_tokens, torch.float32, rates.evaluation.get(block.path), rates) for block in blocks)
    if source.anatomy.kind != "causal_lm" or not load.evaluation_tokens:
        return rounds * row
    half = max(1, load.evaluation_tokens // 2)
    prompt, new, continued = min(speed.PROMPT, half), min(speed.NEW, half), min(speed.CONTINUED, half)
    step = sum(_step(block, rates) for block in blocks)
    prefill = row * prompt / load.evaluation_tokens
    return rounds * (prefill + new * step) + 2 * (min(speed.PROMPTS, load.evaluation_rows) * prefill + 2 * continued * step)


def _step(block: Block, rates: Rates) -> float:
    """Seconds that a block takes for one token by itself: its matrices are read, in two bytes a weight."""
    linears = [(linear, active(block, linear)) for linear in block.linears]
    return sum(share * (rates.call + 2.0 * linear.out_features * linear.in_features / rates.read) for linear, share in linears)
