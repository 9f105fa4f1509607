"""Small problems on which methods are tried before a run: how long they take, and how much memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch

from thrifty.base.anatomy import Space
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.core.statistics import Statistics
from thrifty.pipeline.footprint import Ledger
from thrifty.weights.base import Target, Transform, Treatment, solve

SIZES = (256, 512)
"""Widths of the square matrices that methods are tried on, about: a target may want multiples of something else."""


def sample_problem(width: int, device: str = "cpu", rows: int | None = None) -> Problem:
    """A matrix, and inputs whose channels go together and differ in size, as real ones do. rows: its outputs, by default as many."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(2 * width, width // 4, generator=generator) @ torch.randn(width // 4, width, generator=generator)
    inputs = (mixed / width**0.5 + torch.randn(2 * width, width, generator=generator)) * torch.rand(width, generator=generator).add(0.1)
    gram = Statistics.of(inputs.to(device)).gram
    return Problem(torch.randn(rows or width, width, generator=generator).to(device), gram, 2 * width)


def sample_widths(target: Target | None, width: int) -> tuple[int, int]:
    """Two widths near SIZES that matrices in `target` may have, as they may have `width`."""
    small, large = SIZES
    step = 1 if target is None else next(step for step in range(1, width + 1) if width % step == 0 and _holds(target, step))
    first = -(-small // step) * step
    return first, max(first + step, -(-large // step) * step)


def _holds(target: Target, width: int) -> bool:
    with suppress(InputError):
        target.check(width, width, "")
        return True
    return False


@dataclass(frozen=True)
class Appetite:
    """Bytes that a treatment holds at its fullest moment, beside the matrix and its Gram matrix. alone: for each number of the Gram matrix,
    while it looks at that. gram, matrix: for each number of both while it solves."""

    alone: float
    gram: float
    matrix: float

    def bytes(self, out_features: int, in_features: int) -> int:
        """For a matrix of this shape."""
        return int(max(self.alone * in_features**2, self.gram * in_features**2 + self.matrix * out_features * in_features))


@cache
def appetite(treatment: Treatment, width: int) -> Appetite:
    """What a treatment holds, found by doing it on small problems of few and of many rows, for matrices that have `width` inputs."""
    return _appetite(lambda problem: solve(problem, treatment), treatment.target, width)


@cache
def appetite_of_rewriting(transform: Transform, treatment: Treatment | None, width: int) -> Appetite:
    """The same of a transform, for matrices that read a space of this width and are then treated so."""
    return _appetite(lambda problem: rewritten(problem, transform, treatment), None if treatment is None else treatment.target, width)


def _appetite(act: Callable[[Problem], object], target: Target | None, width: int) -> Appetite:
    size, wide = sample_widths(target, width)
    few = _held(act, sample_problem(wide, rows=size // 8))
    many, twice = (_held(act, sample_problem(size, rows=rows)) for rows in (2 * size, 4 * size))
    matrix = max(0.0, (twice - many) / (2 * size * size))
    return Appetite(few / wide**2, max(0.0, many / size**2 - 2 * matrix), matrix)


def _held(act: Callable[[Problem], object], problem: Problem) -> int:
    ledger = Ledger([problem.weight, problem.gram], small=0)
    with ledger:
        act(problem)
    return ledger.peak


def rewritten(problem: Problem, transform: Transform, treatment: Treatment | None) -> object:
    """What a transform makes of a space that this matrix reads."""
    width = problem.weight.shape[1]
    ones = torch.ones(width, device=problem.weight.device)
    seen = Statistics(problem.tokens, problem.gram * problem.tokens, ones * problem.tokens, ones * 0, -ones, ones)
    space = Space("probe", width, producers=("norm",), consumers=("linear",), commutes_with="scale", normed=True)
    return transform.rewrite(space, [problem.weight], seen, treatment)
