"""A two-second look at this machine: how fast it multiplies, walks columns, and writes files."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from thrifty.base.records import Problem
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Treatment, solve

MATRIX = 1024


@dataclass(frozen=True)
class Rates:
    """Floating-point operations a second by type, seconds a column of the solver, bytes a second to disk, seconds that any run takes."""

    multiply: dict[torch.dtype, float]
    grams: dict[torch.dtype, float]
    column: float
    disk: float
    fixed: float = 2.0

    def forward(self, dtype: torch.dtype) -> float:
        """Rate of matrix products of this type."""
        return self.multiply[dtype]

    def gram(self, dtype: torch.dtype) -> float:
        """Rate of Gram matrices taken from inputs of this type."""
        return self.grams[dtype]


def probe(treatments: tuple[Treatment, ...], device: str, folder: Path) -> Rates:
    """Measure the rates that the estimate of time uses."""
    types = (torch.float32, torch.bfloat16, torch.float16)
    multiply, grams = {}, {}
    for dtype in types:
        left = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
        multiply[dtype] = 2 * MATRIX**3 / best(lambda left=left: left @ left.T, device)
        grams[dtype] = 2 * MATRIX**3 / best(lambda left=left: Statistics.of(left), device)
    return Rates(multiply, grams, column_seconds(treatments, device), disk_rate(folder))


def best(call: Callable[[], object], device: str, seconds: float = 0.1) -> float:
    """The median time of a call, repeated for about `seconds`."""
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def column_seconds(treatments: tuple[Treatment, ...], device: str, width: int = 256) -> float:
    """Seconds that the slowest treatment takes a column of a small matrix: what no matrix product explains."""
    weight = torch.randn(width, width, device=device)
    gram = torch.eye(width, device=device)
    slowest = 0.0
    for treatment in treatments:
        taken = best(lambda treatment=treatment: solve(Problem(weight, gram, width), treatment), device)
        slowest = max(slowest, taken / width)
    return slowest


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


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
