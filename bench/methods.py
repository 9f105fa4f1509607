"""What each published method does on the model inside the package: the measured figure of its row in the catalogue.

Usage: python bench/methods.py            (writes src/thrifty/papers/measured.json)
       python bench/methods.py farms      only these; what is measured of the others stays

Those that train are not run again: their figures are taken from bench/results/quantization_aware.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import thrifty
from thrifty.papers.status import MEASURED

HERE = Path(__file__).parent
BUILD = HERE / "build" / "methods"
GRID = {"bits": 4, "group_size": 32}
RUNS: dict[str, tuple[str, Any, str]] = {
    "aqlm": (
        "four codebooks of 16 entries for groups of 8, 2.12 bits all counted",
        {"solve": {"by": "aqlm", "into": {"additive": {"codebooks": 4, "bits": 4}}}},
        "tests/weights/test_additive.py",
    ),
    "awp": ("4 bits, groups of 32", {"solve": {"by": "awp", "into": {"int": GRID}}}, "tests/weights/test_awp.py"),
    "baq": (
        "4 bits on average, allocated by column",
        {"solve": {"by": "obs", "into": {"int": {"bits": 4, "group_size": 0, "symmetric": False}}, "share": "baq"}},
        "tests/weights/test_baq.py",
    ),
    "coqmoe": (
        "inputs of 4 bits on one fixed grid, weights of 8",
        [{"coqmoe": {}}, {"rtn": {"bits": 8, "group_size": 0, "activation": {"static": {"bits": 4}}}}],
        "tests/weights/test_coqmoe.py",
    ),
    "descent": (
        "4 bits, groups of 32",
        {"solve": {"by": "descent", "into": {"int": {**GRID, "range": "mse"}}}},
        "tests/weights/test_descent.py",
    ),
    "efficient_vla": ("one of four blocks removed", {"efficient_vla": {"ratio": 0.25}}, "tests/structure/test_efficient_vla.py"),
    "farms": (
        "70 % of the weights by sparsegpt, shared out among blocks",
        {"sparsegpt": {"sparsity": 0.7, "share": "farms"}},
        "tests/weights/test_farms.py",
    ),
    "flap": (
        "a fifth of the neurons removed",
        {"flap": {"ratio": 0.2, "cut": ["neurons"]}},
        "tests/structure/test_flap.py",
    ),
    "gptq": ("4 bits, groups of 32", {"gptq": GRID}, "tests/weights/test_obs.py"),
    "polaron": (
        "3 bits on average chosen by matrix from 2, 3, 4 and 8",
        {"mix": {"budget": 3.5, "share": "polaron"}},
        "tests/weights/test_polaron.py",
    ),
    "q_sam2": (
        "3 bits, groups of 32, rounded to nearest",
        {"solve": {"by": "q_sam2", "into": {"int": {"bits": 3, "group_size": 32}}}},
        "tests/weights/test_q_sam2.py",
    ),
    "short_gpt": ("one of four blocks removed", {"short_gpt": {"ratio": 0.25}}, "tests/structure/test_short_gpt.py"),
    "sparsegpt": ("half of the weights", {"sparsegpt": {"sparsity": 0.5}}, "tests/weights/test_obs.py"),
    "wanda": ("half of the weights", {"wanda": {"sparsity": 0.5}}, "tests/weights/test_targets.py"),
}
"""Of each method: its setting in words, the step or the steps of the recipe, and the file that checks it."""

TRAINED: dict[str, tuple[str, str, str]] = {
    "distill": (
        "2 bits in groups of 32 over 4 bits, then trained",
        "zero_free over 4 bits, distilled (UPQ)",
        "tests/pipeline/test_tuning.py",
    ),
    "progressive": (
        "2 bits in groups of 32 over 4 bits, then trained by distill",
        "zero_free over 4 bits, distilled (UPQ)",
        "tests/weights/test_progressive.py",
    ),
}
"""Of each published method that trains: its setting in words, its row in the results, and the file that checks it."""


def main() -> None:
    wanted = sys.argv[1:] or list(RUNS)
    found = json.loads(MEASURED.read_text()) if sys.argv[1:] else {}
    found |= {name: measure(name, *RUNS[name]) for name in wanted} | trained()
    MEASURED.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n")
    print(json.dumps(found, indent=2))


def measure(name: str, words: str, step: Any, test: str) -> dict[str, str]:
    """One method's entry."""
    out = BUILD / name
    shutil.rmtree(out, ignore_errors=True)
    result = thrifty.compress(recipe={"steps": step if isinstance(step, list) else [step]}, out=out, speed=False)
    return {"figure": told(words, result["perplexity"]["before"], result["perplexity"]["after"], result["kl"]), "test": test}


def trained() -> dict[str, dict[str, str]]:
    """The entries of the methods that train."""
    rows = {row["name"]: row for row in json.loads((HERE / "results" / "quantization_aware.json").read_text())["rows"]}
    return {
        name: {"figure": told(words, rows[row]["perplexity_before"], rows[row]["perplexity"], rows[row]["kl"]), "test": test}
        for name, (words, row, test) in TRAINED.items()
    }


def told(words: str, before: dict[str, float], after: dict[str, float], kl: dict[str, float]) -> str:
    """A setting and its figures in a sentence."""
    lost = f"KL divergence {kl['value']:.4f} (95 % interval {kl['low']:.4f} to {kl['high']:.4f})"
    return f"{words}, on the model inside the package: perplexity {before['value']:.3f} to {after['value']:.3f}, {lost}"


if __name__ == "__main__":
    main()
