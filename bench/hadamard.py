"""How fast the Hadamard transform is, beside a copy of the same tensor.

Usage: OMP_NUM_THREADS=1 taskset -c 1 python bench/hadamard.py            (writes bench/results/hadamard.json; half a minute)

One core, 64 rows of each width. A copy, the transform in compiled code and the one in plain torch take turns, so that whatever else the
machine does meets all three; each figure is the median of its calls. `share` is the time of a copy by that of the transform: both read
every value once and write it once, so that 1 would be a transform for nothing. `making` is a copy that makes its tensor, as the transform
does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from thrifty.core.fast_hadamard import _call
from thrifty.core.hadamard import known_order, plain_transform, transform
from thrifty.measure.hardware import hardware, versions

ROWS = 64
WIDTHS = (256, 896, 1024, 4096, 5120, 14336)
ROUNDS = 400
SECONDS = 3.0


def main() -> None:
    torch.set_num_threads(1)
    rows = [measured(width, dtype) for dtype in (torch.float32, torch.bfloat16) for width in WIDTHS]
    placed = {"cores": len(os.sched_getaffinity(0)), "compiled": _call() is not None}
    summary = {"hardware": hardware(), "versions": versions(), **placed, "rows": rows}
    path = Path(__file__).parent / "results" / "hadamard.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def measured(width: int, dtype: torch.dtype) -> dict:
    """One width's figures: seconds of a copy and of the transform."""
    values, order = torch.randn(ROWS, width).to(dtype), known_order(width)
    out = torch.empty_like(values)
    calls = {
        "copy": lambda: out.copy_(values),
        "making": lambda: values.clone(),
        "transform": lambda: transform(values),
        "plain": lambda: plain_transform(values, order),
    }
    found = in_turn(calls)
    kind = str(dtype).removeprefix("torch.")
    return {"width": width, "order": order, "dtype": kind, **found, "share": found["copy"] / found["transform"]}


def in_turn(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()  # what the one before left in the cache is not its own
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() - began > SECONDS:
            break
    return {name: median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
