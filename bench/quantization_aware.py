"""Training after solving, at 2 bits and at three values in groups of 32, on the model inside the package: what it gives back, and its time.

Usage: python bench/quantization_aware.py [--steps 512] [--only NAME ...]       (writes bench/results/quantization_aware.json)

All get the same calibration text, which is all that comes with the package, and are judged on the same held-out windows; differences are
taken window by window, so that an interval of one that holds 0 means that neither is better. Finished results are kept in
bench/build/quantization_aware and scored again, not made again; a result that was stopped goes on where it was. With `--only` the rows of
other results, and their differences, stay as they are in the file. Codebooks are held in the container, the others in compressed-tensors.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import torch
from judge import BUILD, RESULTS, Judge, beside, figures, write

import thrifty
from thrifty.measure.hardware import hardware

HOME = BUILD / "quantization_aware"
CALIBRATION = "calibration: {samples: 1024, tokens: 256}"
EVALUATION = "evaluation: {samples: 8, tokens: 256}"
GRID = "group_size: 32"
PLAIN = {
    "gptq, 2 bits": f"gptq: {{bits: 2, {GRID}}}",
    "gptq, 2 bits, zero points": f"gptq: {{bits: 2, {GRID}, symmetric: false}}",
    "zero_free": f"solve: {{by: obs, into: {{zero_free: {{{GRID}}}}}}}",
    "zero_free over 4 bits": f"solve: {{by: progressive, into: {{zero_free: {{{GRID}}}}}}}",
    "ternary": f"solve: {{by: obs, into: {{ternary: {{{GRID}}}}}}}",
    "aqlm": "solve: {by: aqlm, into: {additive: {codebooks: 3, bits: 6}}}",
}
TRAINED = {
    "zero_free over 4 bits, distilled (UPQ)": ("zero_free over 4 bits", "distill", ""),
    "zero_free, distilled": ("zero_free", "distill", ""),
    "zero_free, on the text": ("zero_free", "next_token", ""),
    "ternary, on the text (BitCPM)": ("ternary", "next_token", ""),
    "ternary, distilled": ("ternary", "distill", ""),
    "gptq, 2 bits, zero points, distilled": ("gptq, 2 bits, zero points", "distill", ""),
    "aqlm, distilled": ("aqlm", "distill", ""),
    "aqlm, distilled, codes moving": ("aqlm", "distill", ", moves: 0.01"),
}
PAIRS = [
    ("zero_free over 4 bits, distilled (UPQ)", "gptq, 2 bits"),
    ("zero_free over 4 bits, distilled (UPQ)", "gptq, 2 bits, zero points"),
    ("zero_free over 4 bits, distilled (UPQ)", "zero_free, on the text"),
    ("zero_free over 4 bits, distilled (UPQ)", "zero_free, distilled"),
    ("ternary, on the text (BitCPM)", "ternary"),
    ("ternary, on the text (BitCPM)", "gptq, 2 bits"),
    ("ternary, distilled", "ternary, on the text (BitCPM)"),
    ("gptq, 2 bits, zero points, distilled", "gptq, 2 bits, zero points"),
    ("gptq, 2 bits, zero points, distilled", "zero_free over 4 bits, distilled (UPQ)"),
    ("aqlm", "gptq, 2 bits"),
    ("aqlm, distilled", "aqlm"),
    ("aqlm, distilled", "gptq, 2 bits"),
    ("aqlm, distilled", "gptq, 2 bits, zero points"),
    ("aqlm, distilled", "zero_free over 4 bits, distilled (UPQ)"),
    ("aqlm, distilled, codes moving", "aqlm, distilled"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--only", nargs="+", choices=[*PLAIN, *TRAINED])
    arguments = parser.parse_args()
    steps, judge = arguments.steps, Judge()
    recipes = {name: f"{{{step}}}" for name, step in PLAIN.items()}
    recipes |= {name: f"{{{PLAIN[first]}}}, {{{tuner}: {{steps: {steps}{more}}}}}" for name, (first, tuner, more) in TRAINED.items()}
    before = json.loads((RESULTS / "quantization_aware.json").read_text()) if arguments.only else {"rows": [], "differences": {}}
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in before["rows"]}
    scores = {}
    for name, recipe in recipes.items():
        if arguments.only and name not in arguments.only:
            continue
        out = HOME / f"{steps if name in TRAINED else 0} {name}"
        held = "thrifty" if name.startswith("aqlm") else "compressed-tensors"
        recipe = f"{{{CALIBRATION}, {EVALUATION}, steps: [{recipe}]}}"
        found = thrifty.compress(recipe=recipe, out=out, format=held, speed=False)
        scores[name] = judge.scores(out)
        kept = {key: found[key] for key in ("seconds", "bits_per_weight", "peak_rss_bytes")}
        rows[name] = {"name": name, "recipe": recipes[name], **figures(scores[name]), **kept}
        pairs = [(one, other) for one, other in PAIRS if {one, other} <= scores.keys()]
        differences = before["differences"] | {f"{one} minus {other}": beside(scores[one], scores[other]) for one, other in pairs}
        head = {**judge.describe(), "calibration": found["data"]["calibration"]["tokens"], "steps": steps, "hardware": hardware()}
        write(
            "quantization_aware.json",
            {**head, "load": os.getloadavg(), "threads": torch.get_num_threads(), "rows": [*rows.values()], "differences": differences},
        )


if __name__ == "__main__":
    main()
