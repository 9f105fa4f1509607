"""Training after solving, at 2 bits and at three values in groups of 32, on the model inside the package: what it gives back, and its time.

Usage: python bench/quantization_aware.py [--steps 512]                 (writes bench/results/quantization_aware.json)
       python bench/quantization_aware.py --library [--steps 2048]      (writes bench/results/quantization_aware_library.json)

All get the same calibration text and are judged on the same held-out windows; differences are taken window by window, so that an interval
of one that holds 0 means that neither is better. The text is all that comes with the package, 177 thousand tokens, which long training
learns by heart; with --library it is two million tokens of the standard library of this Python, of which none is seen twice. Finished
results are kept in bench/build/quantization_aware and scored again, not made again; a result that was stopped goes on where it was. With
--only NAME .. the file keeps what else it holds of the same steps.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from judge import BUILD, Judge, beside, earlier, figures, write
from library import library

import thrifty
from thrifty.measure.hardware import hardware

HOME = BUILD / "quantization_aware"
EVALUATION = "evaluation: {samples: 8, tokens: 256}"
GRID = "group_size: 32"
PLAIN = {
    "gptq, 2 bits": f"gptq: {{bits: 2, {GRID}}}",
    "gptq, 2 bits, zero points": f"gptq: {{bits: 2, {GRID}, symmetric: false}}",
    "zero_free": f"solve: {{by: obs, into: {{zero_free: {{{GRID}}}}}}}",
    "zero_free over 4 bits": f"solve: {{by: progressive, into: {{zero_free: {{{GRID}}}}}}}",
    "gptq, 2 bits, groups of 256": "gptq: {bits: 2, group_size: 256}",
    "gptq, 2 bits, groups of 256, zero points": "gptq: {bits: 2, group_size: 256, symmetric: false}",
    "gptq, 2 bits, groups of 128, zero points": "gptq: {bits: 2, group_size: 128, symmetric: false}",
    "ternary": f"solve: {{by: obs, into: {{ternary: {{{GRID}}}}}}}",
}
TRAINED = {
    "zero_free over 4 bits, distilled (UPQ)": ("zero_free over 4 bits", "distill"),
    "zero_free, distilled": ("zero_free", "distill"),
    "zero_free, on the text": ("zero_free", "next_token"),
    "ternary, on the text (BitCPM)": ("ternary", "next_token"),
    "ternary, distilled": ("ternary", "distill"),
    "gptq, 2 bits, zero points, distilled": ("gptq, 2 bits, zero points", "distill"),
}
WIDE = ("256", "256, zero points", "128, zero points")
"""Groups in which 2 bits and their scales take 2.06 to 2.14 bits a weight: what ternary codes in groups of 32 take (2.08)."""

PAIRS = [
    ("zero_free over 4 bits, distilled (UPQ)", "gptq, 2 bits"),
    ("zero_free over 4 bits, distilled (UPQ)", "gptq, 2 bits, zero points"),
    ("zero_free over 4 bits, distilled (UPQ)", "zero_free, on the text"),
    ("zero_free over 4 bits, distilled (UPQ)", "zero_free, distilled"),
    ("ternary, on the text (BitCPM)", "ternary"),
    ("ternary, on the text (BitCPM)", "gptq, 2 bits"),
    *((f"ternary, {way}", f"gptq, 2 bits, groups of {more}") for way in ("on the text (BitCPM)", "distilled") for more in WIDE),
    ("ternary, distilled", "ternary, on the text (BitCPM)"),
    ("gptq, 2 bits, zero points, distilled", "gptq, 2 bits, zero points"),
    ("gptq, 2 bits, zero points, distilled", "zero_free over 4 bits, distilled (UPQ)"),
]


IN_LIBRARY = (
    "gptq, 2 bits",
    "gptq, 2 bits, zero points",
    *(f"gptq, 2 bits, groups of {more}" for more in WIDE),
    "ternary, on the text (BitCPM)",
    "ternary, distilled",
    "zero_free, distilled",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--library", action="store_true", help="train on the standard library instead of the text inside the package")
    parser.add_argument("--only", nargs="+", choices=[*PLAIN, *TRAINED])
    arguments = parser.parse_args()
    steps = arguments.steps or (2048 if arguments.library else 512)
    text = f"text: {library()}, samples: 8192" if arguments.library else "samples: 1024"
    source = "library " if arguments.library else ""
    judge = Judge()
    recipes = {name: f"{{{step}}}" for name, step in PLAIN.items()}
    recipes |= {name: f"{{{PLAIN[first]}}}, {{{tuner}: {{steps: {steps}}}}}" for name, (first, tuner) in TRAINED.items()}
    result = f"quantization_aware{'_library' if arguments.library else ''}.json"
    rows, differences = earlier(result, steps) if arguments.only else ({}, {})
    scores: dict[str, Any] = {}
    for name, recipe in recipes.items():
        if (arguments.library and name not in IN_LIBRARY) or name not in (arguments.only or recipes):
            continue
        out = HOME / f"{source}{steps if name in TRAINED else 0} {name}"
        whole = f"{{calibration: {{{text}, tokens: 256}}, {EVALUATION}, steps: [{recipe}]}}"
        found = thrifty.compress(recipe=whole, out=out, speed=False)
        scores[name] = judge.scores(out)
        cost = {key: found[key] for key in ("seconds", "bits_per_weight", "peak_rss_bytes")}
        rows[name] = {"name": name, "recipe": recipe, **figures(scores[name]), **cost}
        differences |= {f"{one} minus {other}": beside(scores[one], scores[other]) for one, other in PAIRS if {one, other} <= scores.keys()}
        head = {**judge.describe(), "calibration": found["data"]["calibration"]["tokens"], "steps": steps, "hardware": hardware()}
        machine = {"load": os.getloadavg(), "threads": torch.get_num_threads()}
        write(result, {**head, **machine, "rows": [rows[one] for one in recipes if one in rows], "differences": differences})


if __name__ == "__main__":
    main()
