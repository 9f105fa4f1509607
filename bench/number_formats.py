"""What the weights of the model inside the package lose in each small number format, rounded to nearest and by `obs`.

Usage: python bench/number_formats.py            (writes bench/results/number_formats.json)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import thrifty
from thrifty.measure.hardware import hardware

BUILD = Path(__file__).parent / "build" / "number_formats"
RESULT = Path(__file__).parent / "results" / "number_formats.json"
SCALE_BITS = {"real": 16, "power_of_two": 8, "e4m3": 8}
FORMATS: dict[str, dict[str, Any]] = {
    "INT4, groups of 32": {"int": {"bits": 4, "group_size": 32}},
    "FP4, groups of 32": {"float": {"format": "e2m1", "group_size": 32}},
    "MXFP4": {"float": {"format": "e2m1", "group_size": 32, "scale": "power_of_two"}},
    "NVFP4": {"float": {"format": "e2m1", "group_size": 16, "scale": "e4m3"}},
    "fixed point, 4 bits, groups of 32": {"fixed": {"bits": 4, "group_size": 32}},
    "posit(4, 0), groups of 32": {"posit": {"bits": 4, "es": 0, "group_size": 32}},
    "MXFP6 e2m3": {"float": {"format": "e2m3", "group_size": 32, "scale": "power_of_two"}},
    "MXFP6 e3m2": {"float": {"format": "e3m2", "group_size": 32, "scale": "power_of_two"}},
    "INT8, a scale a row": {"int": {"bits": 8, "group_size": 0}},
    "FP8 e4m3, a scale a row": {"float": {"format": "e4m3", "group_size": 0}},
    "FP8 e5m2, a scale a row": {"float": {"format": "e5m2", "group_size": 0}},
    "fixed point, 8 bits, a row": {"fixed": {"bits": 8}},
    "posit(8, 0), a row": {"posit": {"bits": 8, "es": 0}},
    "posit(8, 1), a row": {"posit": {"bits": 8, "es": 1}},
    "posit(8, 2), a row": {"posit": {"bits": 8, "es": 2}},
}
SOLVERS = ("round", "obs")


def main() -> None:
    rows = [measure(name, target, solver) for name, target in FORMATS.items() for solver in SOLVERS]
    RESULT.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


def measure(name: str, target: dict[str, Any], solver: str) -> dict[str, Any]:
    """One format and solver; a result that is there is not made again."""
    out = BUILD / f"{name} {solver}"
    if not (out / "certificate.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        thrifty.compress(recipe={"steps": [{"solve": {"by": solver, "into": target}}]}, out=out, speed=False)
    certificate = json.loads((out / "certificate.json").read_text())
    ((kind, settings),) = target.items()
    scale = "power_of_two" if kind in ("fixed", "posit") else settings.get("scale", "real")
    bits = certificate["layers"][0]["bits"]
    group_size = settings.get("group_size", 0)
    return {
        "format": name,
        "solver": solver,
        "bits": bits + (SCALE_BITS[scale] / group_size if group_size else 0),
        "perplexity": certificate["perplexity"],
        "kl": certificate["kl"],
    }


if __name__ == "__main__":
    main()
