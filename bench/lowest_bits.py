"""What the weights of the model inside the package lose at two bits and fewer: ternary, zero-free and integer grids.

Usage: python bench/lowest_bits.py            (writes bench/results/lowest_bits.json)
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import thrifty
from thrifty.measure.hardware import hardware

BUILD = Path(__file__).parent / "build" / "lowest_bits"
RESULT = Path(__file__).parent / "results" / "lowest_bits.json"
SCALE_BITS = 16
GROUP_SIZES = (32, 256)
SOLVERS = ("round", "obs")
TARGETS: dict[str, tuple[dict[str, Any], float, int]] = {
    "ternary, mean magnitude": ({"ternary": {"range": "absmean"}}, math.log2(3), 0),
    "ternary, least squares": ({"ternary": {"range": "mse"}}, math.log2(3), 0),
    "ternary, stretched by 1.2": ({"ternary": {"range": "mse", "stretch": 1.2}}, math.log2(3), 0),
    "INT2 without zero": ({"zero_free": {"bits": 2, "range": "mse"}}, 2, 0),
    "INT2 without zero, stretched by 1.15": ({"zero_free": {"bits": 2, "range": "mse", "stretch": 1.15}}, 2, 0),
    "INT2 symmetric": ({"int": {"bits": 2, "range": "mse"}}, 2, 0),
    "INT2 with zero points": ({"int": {"bits": 2, "symmetric": False, "range": "mse"}}, 2, 2),
}
"""Of each: the target without its groups, bits of a code, bits of a zero point."""


def main() -> None:
    rows = [measure(name, size, solver) for size in GROUP_SIZES for name in TARGETS for solver in SOLVERS]
    RESULT.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


def measure(name: str, group_size: int, solver: str) -> dict[str, Any]:
    """One target and solver; a result that is there is not made again."""
    target, bits, zero_bits = TARGETS[name]
    ((kind, settings),) = target.items()
    out = BUILD / f"{name} {group_size} {solver}"
    if not (out / "certificate.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        step = {"solve": {"by": solver, "into": {kind: {**settings, "group_size": group_size}}}}
        thrifty.compress(recipe={"steps": [step]}, out=out, speed=False)
    certificate = json.loads((out / "certificate.json").read_text())
    return {
        "target": name,
        "group_size": group_size,
        "solver": solver,
        "bits": bits + (SCALE_BITS + zero_bits) / group_size,
        "perplexity": certificate["perplexity"],
        "kl": certificate["kl"],
    }


if __name__ == "__main__":
    main()
