"""A look of some seconds at this machine: how fast it takes a model's blocks, Gram matrices and solvers, and how fast it writes files.

What is timed has the shapes of the run: a block of each kind with random weights, the widths that its linears read, the treatments of the
recipe. Only what would take too long is worked out from a smaller piece.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from thrifty.base.records import Problem
from thrifty.data import Rows
from thrifty.models import Source, run_block
from thrifty.pipeline.footprint import Kind, kinds
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.readings import gather
from thrifty.pipeline.sample import rewritten, sample_problem, sample_widths
from thrifty.pipeline.steps import Work
from thrifty.tune.rates import LayerRates
from thrifty.weights.base import Target, Transform, Treatment, solve
from thrifty.weights.layerwise import Layerwise, Look

MATRIX = 1024
GRAM_TOKENS, GRAM_WIDTH = 1024, 2048
"""Tokens, and the widest input, that a Gram matrix is timed with."""

LARGEST = 1 << 26
"""Parameters of a block above which matrix products explain its time well enough."""

BRIEF = 0.05
"""Seconds that one measurement should take, about."""

LOOKED = 256
"""Rows and columns of the matrix that shares of sparsity are timed with."""

CALLS = 6
"""Small tensor operations that come with a linear, about: norms, activations, positions, and the modules around them."""


@dataclass(frozen=True)
class Growth:
    """Seconds that a method takes for a matrix: so much a column, and so much a multiplication of a product with its Gram matrix."""

    column: float
    product: float

    def seconds(self, out_features: int, in_features: int) -> float:
        """For a matrix of this shape."""
        return self.column * in_features + self.product * out_features * in_features**2


@dataclass(frozen=True)
class Rates:
    """What was measured.

    multiply: floating-point operations a second, by type. read: bytes a second of a matrix that meets a single row. call: seconds that one
    linear takes whatever its size. disk: bytes a second. gram: seconds of GRAM_TOKENS tokens by width, up to GRAM_WIDTH. calibration,
    evaluation: seconds a row by block path, where that was short enough to measure. treatments, transforms: by what they are and act for.
    scores: seconds an operation of what shares sparsity, or the rates of training, out.
    """

    multiply: Mapping[torch.dtype, float]
    read: float
    call: float
    disk: float
    gram: Mapping[int, float] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    treatments: Mapping[Treatment, Growth] = field(default_factory=dict)
    transforms: Mapping[tuple[Transform, Treatment | None], Growth] = field(default_factory=dict)
    scores: Mapping[Layerwise | LayerRates, float] = field(default_factory=dict)


def probe(source: Source, work: Work, setting: Setting, calibration: Rows | None, evaluation: Rows | None, folder: Path) -> Rates:
    """Measure what the estimate of time uses, on the device of the run; `folder` is where it will write."""
    device = setting.device
    types = dict.fromkeys((torch.float32, setting.dtype))
    multiply = {dtype: 2 * MATRIX**3 / best(_product(MATRIX, dtype, device), device) for dtype in types}
    read = MATRIX**2 * 16 * 2 / best(_product(1, torch.bfloat16, device, 4 * MATRIX), device)
    return Rates(
        multiply,
        read,
        CALLS * best(_product(1, torch.float32, device, 64), device),
        disk_rate(folder),
        _grams(source, calibration, setting),
        block_seconds(source, calibration, setting.dtype, setting),
        block_seconds(source, evaluation, torch.float32, setting),
        {
            treatment: _growth(lambda problem, treatment=treatment: solve(problem, treatment), treatment.target, width, device)
            for treatment, width in _treatments(source, work).items()
        },
        {
            pair: _growth(lambda problem, pair=pair: rewritten(problem, *pair), pair[1] and pair[1].target, width, device)
            for pair, width in _transforms(source, work).items()
        },
        {allocator: _scoring(allocator) for allocator in dict.fromkeys(treatment.allocator for treatment in work.shares)} | _rating(work),
    )


def _scoring(allocator: Layerwise) -> float:
    """Seconds an operation while one matrix is looked at, which is done on the processor."""
    problem = sample_problem(LOOKED, rows=LOOKED)
    look = Look({"": problem.weight}, {"": problem.gram.diagonal()}, 0.5)
    return best(lambda: allocator.score(look), "cpu") / allocator.operations(LOOKED, LOOKED)


def _rating(work: Work) -> dict[LayerRates, float]:
    """The same of what gives matrices rates of their own, where there is one."""
    if work.tuner is None or work.tuner.rates is None:
        return {}
    rates, weight = work.tuner.rates, sample_problem(LOOKED, rows=LOOKED).weight
    return {rates: best(lambda: rates.alpha(weight), "cpu") / rates.cost(LOOKED, LOOKED)[0]}


def best(call: Callable[[], object], device: str, seconds: float = BRIEF) -> float:
    """The median time of a call that was made once before, repeated for about `seconds`."""
    call()
    times: list[float] = []
    while not times or sum(times) < seconds:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def disk_rate(folder: Path, size: int = 32 << 20) -> float:
    """Bytes a second that reach the disk in `folder` (the nearest parent that exists)."""
    while not folder.is_dir():
        folder = folder.parent
    block = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return size / (time.perf_counter() - start)
    except OSError:
        return float(100 << 20)


# -- the pieces of a run -----------------------------------------------------------------------------------------------


def _product(rows: int, dtype: torch.dtype, device: str, width: int = MATRIX) -> Callable[[], Tensor]:
    left, right = (torch.randn(count, width, device=device).to(dtype) for count in (rows, width))
    return lambda: torch.nn.functional.linear(left, right)


def _grams(source: Source, rows: Rows | None, setting: Setting) -> dict[int, float]:
    if rows is None:
        return {}
    widths = {min(stage.reads.width, GRAM_WIDTH) for block in source.anatomy.blocks for stage in block.stages}
    found = {}
    for width in sorted(widths):
        inputs = torch.randn(GRAM_TOKENS, width, device=setting.device).to(setting.dtype)
        found[width] = best(lambda inputs=inputs: gather(inputs), setting.device)
    return found


def block_seconds(source: Source, rows: Rows | None, dtype: torch.dtype, setting: Setting) -> dict[str, float]:
    """Seconds a row of the blocks that a pass can be timed of."""
    found: dict[str, float] = {}
    if rows is None:
        return found
    with suppress(Exception):  # a model that cannot be run without its values is worked out from its linears
        for kind in kinds(source, rows.select(0, 1).inputs):
            if source.block_parameters(kind.block) <= LARGEST:
                seconds = _pass_seconds(source, kind, min(setting.batch, rows.rows), dtype, setting.device)
                found.update(dict.fromkeys(kind.paths, seconds))
    return found


@torch.no_grad()
def _pass_seconds(source: Source, kind: Kind, batch: int, dtype: torch.dtype, device: str) -> float:
    """Seconds a row, of one row at a time where that alone is long."""
    module = source.random_block(kind.block, dtype, device)
    call = kind.call.to(device, dtype)
    hidden = torch.randn(batch, *kind.shape, device=device).to(dtype)
    if call.carried is not None:
        hidden = call.carried.blank(hidden)
    alone = best(lambda: run_block(module, hidden[:1], call), device, 0.0)
    if alone > BRIEF or batch == 1:
        return alone
    return best(lambda: run_block(module, hidden, call), device) / batch


def _treatments(source: Source, work: Work) -> dict[Treatment, int]:
    """Every treatment, and the width of a matrix that it is for."""
    widths = {linear.path: linear.in_features for linear in source.anatomy.linears}
    tried = {mix.treatment(option): widths[path] for path, (mix, _) in work.mixes.items() for option in range(len(mix.into))}
    return tried | {treatment: widths[path] for path, chosen in work.treatments.items() for treatment in chosen}


def _transforms(source: Source, work: Work) -> dict[tuple[Transform, Treatment | None], int]:
    """Every transform with what follows it, and the width of a space that it is for."""
    spaces = [space for block in source.anatomy.blocks for space in block.spaces if space.producers]
    chosen = {
        (work.transform_for(position, space), work.treatment_for(space)): space.width
        for space in spaces
        for position in range(len(work.transforms))
    }
    return {(transform, treatment): width for (transform, treatment), width in chosen.items() if transform is not None}


def _growth(act: Callable[[Problem], object], target: Target | None, width: int, device: str) -> Growth:
    """Time a method on a small and on a larger problem, for matrices in `target` that have `width` inputs."""
    small, large = sizes = sample_widths(target, width)
    first, second = (best(partial(act, sample_problem(size, device)), device) for size in sizes)
    # seconds = column * width + product * width^3 at both
    product = max(0.0, (second / large - first / small) / (large**2 - small**2))
    return Growth(max(0.0, first / small - product * small**2), product)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
