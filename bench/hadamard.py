"""How fast the Hadamard transform is, beside a copy of the same tensor.

Usage: OMP_NUM_THREADS=1 python bench/hadamard.py            (writes bench/results/hadamard.json; a few seconds)

One core, float32, 64 rows of each width. `share` is the time of a copy by that of the transform: both read every value once and write it
once, so that 1 would be a transform for nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from thrifty.core.hadamard import known_order, transform
from thrifty.measure.hardware import hardware, versions

ROWS = 64
WIDTHS = (256, 896, 1024, 4096, 5120)
SECONDS = 0.5


def main() -> None:
    torch.set_num_threads(1)
    rows = [measured(width) for width in WIDTHS]
    summary = {"hardware": hardware(), "versions": versions(), "rows": rows}
    path = Path(__file__).parent / "results" / "hadamard.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def measured(width: int) -> dict:
    """One width's figures: seconds of a copy and of the transform."""
    values = torch.randn(ROWS, width)
    out = torch.empty_like(values)
    copy, fast = quick(lambda: out.copy_(values)), quick(lambda: transform(values))
    return {"width": width, "order": known_order(width), "copy": copy, "transform": fast, "share": copy / fast}


def quick(call: Callable[[], object]) -> float:
    """The lower quartile of the times of a call that was made once before: others may be at work on the machine."""
    call()
    times: list[float] = []
    while sum(times) < SECONDS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 4]


if __name__ == "__main__":
    main()
