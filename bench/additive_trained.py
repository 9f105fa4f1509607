"""Additive codebooks of about 2.5 bits, solved by `aqlm` and then trained, beside 2-bit grids in groups of 32, on the model in the package.

Usage: python bench/additive_trained.py [--steps 128] [--only NAME ...]       (writes bench/results/additive_trained.json)

The held-out windows and the pairing are those of bench/quantization_aware.py, and so is the text, of which 512 windows are read here.
`bits_of_a_matrix` counts codes, scales, zero points and codebooks of all matrices in a result's files. Finished results are kept in
bench/build/additive_trained and scored again, not made again; one that was stopped goes on where it was. With --only the file keeps what
else it holds of the same steps.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from judge import BUILD, RESULTS, Judge, beside, figures, write
from safetensors import safe_open

import thrifty
from thrifty.measure.hardware import hardware

HOME = BUILD / "additive_trained"
RESULT = "additive_trained.json"
DATA = "calibration: {samples: 512, tokens: 256}, evaluation: {samples: 8, tokens: 256}"
SOLVED = {
    "gptq": "{gptq: {bits: 2, group_size: 32}}",
    "gptq, zero points": "{gptq: {bits: 2, group_size: 32, symmetric: false}}",
    "aqlm": "{solve: {by: aqlm, into: {additive: {codebooks: 3, bits: 6}}}}",
}
TRAINED = {
    "aqlm, distilled": ("aqlm", ""),
    "aqlm, distilled, codes moving": ("aqlm", ", moves: 0.01"),
}
PAIRS = [
    ("aqlm", "gptq"),
    ("aqlm", "gptq, zero points"),
    ("aqlm, distilled", "aqlm"),
    ("aqlm, distilled", "gptq"),
    ("aqlm, distilled", "gptq, zero points"),
    ("aqlm, distilled, codes moving", "gptq, zero points"),
    ("aqlm, distilled, codes moving", "aqlm, distilled"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SOLVED, *TRAINED])
    parser.add_argument("--steps", type=int, default=128)
    arguments = parser.parse_args()
    steps, judge = arguments.steps, Judge()
    recipes = SOLVED | {name: f"{SOLVED[first]}, {{distill: {{steps: {steps}{more}}}}}" for name, (first, more) in TRAINED.items()}
    before = json.loads((RESULTS / RESULT).read_text()) if (RESULTS / RESULT).exists() else {}
    kept = before if before.get("steps") == steps else {}
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in kept.get("rows", ())}
    differences, scores = dict(kept.get("differences", {})), {}
    for name, recipe in recipes.items():
        if arguments.only and name not in arguments.only:
            continue
        out = HOME / f"{steps if name in TRAINED else 0} {name}"
        found = thrifty.compress(recipe=f"{{{DATA}, steps: [{recipe}]}}", out=out, format="thrifty", speed=False)
        scores[name] = judge.scores(out)
        cost = {key: found[key] for key in ("seconds", "peak_rss_bytes")}
        sizes = {"bits_of_a_matrix": bits_of(out, judge), "bits_per_weight": found["bits_per_weight"]}
        rows[name] = {"name": name, "recipe": recipe, **figures(scores[name]), **sizes, **cost}
        pairs = [(one, other) for one, other in PAIRS if {one, other} <= scores.keys()]
        differences |= {f"{one} minus {other}": beside(scores[one], scores[other]) for one, other in pairs}
        head = {**judge.describe(), "calibration": found["data"]["calibration"]["tokens"], "steps": steps, "hardware": hardware()}
        machine = {"load": os.getloadavg(), "threads": torch.get_num_threads()}
        ordered = [rows[name] for name in recipes if name in rows]
        write(RESULT, {**head, **machine, "rows": ordered, "differences": differences})


def bits_of(folder: Path, judge: Judge) -> float:
    """Bits of a weight of the matrices that were changed: all their tensors in the files."""
    stems = tuple(f"{linear.source.removesuffix('.weight')}." for linear in judge.source.anatomy.linears)
    weights = sum(linear.out_features * linear.in_features for linear in judge.source.anatomy.linears)
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (no mapping)
                if key.startswith(stems) and not key.endswith(".bias"):
                    tensor = opened.get_tensor(key)
                    total += 8 * tensor.numel() * tensor.element_size()
    return total / weights


if __name__ == "__main__":
    main()
