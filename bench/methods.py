"""What each published method does on the model inside the package: the measured figure of its row in the catalogue.

Usage: python bench/methods.py            (writes src/thrifty/papers/measured.json)
       python bench/methods.py farms      only these; what is measured of the others stays

Those that train and those that pack caches are not run again: their figures are taken from quantization_aware.json and cache.json under
bench/results.
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
    "hqq": ("4 bits, groups of 64, no calibration data", {"hqq": {}}, "tests/weights/test_affine.py"),
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
    found |= {name: measure(name, *RUNS[name]) for name in wanted if name in RUNS} | trained() | on_digits() | of_structure() | cached()
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


def cached() -> dict[str, dict[str, str]]:
    """The entries of the methods that pack keys and values, measured by bench/cache.py."""
    found = _read("cache.json")
    row = next(row for row in found["rows"] if row["name"] == "2 bits")
    words = f"2 bits, groups of 32, the newest 128 tokens plain, tokens after the first {found['prompt']}"
    figure = told(words, row["perplexity_before"], row["perplexity"], row["kl"])
    return {"kivi": {"figure": figure, "test": "tests/cache/test_kivi.py"}}


def on_digits() -> dict[str, dict[str, str]]:
    """The entries of the methods that were measured on the vision transformer."""
    inputs = next(row for row in _read("vision.json")["digits_inputs"]["rows"] if row["weights and inputs"] == "8 and 4 bits")
    centred = {row["rewrite"]: row for row in _read("hadanorm.json")["rows"] if row["weights and inputs"] == "8 and 3 bits"}
    grid = "relative error of the last hidden states of the digits' vision transformer"
    entries = {
        "coqmoe": (
            f"weights of 8 and inputs of 4 bits on one fixed grid (range {inputs['range']}), {grid}",
            (inputs["results"]["as it is"], inputs["results"]["coqmoe"], inputs["minus as it is"]["coqmoe"]),
            "tests/weights/test_coqmoe.py",
        ),
        "hadanorm": (
            f"weights of 8 and inputs of 3 bits on a grid of every token, after rotate, {grid}",
            (
                centred["rotate, hadamard"],
                centred["rotate, hadanorm, alpha 0.5"],
                centred["rotate, hadanorm, alpha 0.5"]["minus rotate, hadamard"],
            ),
            "tests/weights/test_hadanorm.py",
        ),
    }
    return {
        name: {"figure": told_beside(words, *scores, "relative_error"), "test": test} for name, (words, scores, test) in entries.items()
    }


def of_structure() -> dict[str, dict[str, str]]:
    """The entries of the methods that were measured by bench/structure_methods.py."""
    found = _read("structure_methods.json")
    digits = found["distilled"]["75% of the neurons"]
    mixers, parts = found["mixers"]["50% of the mixers"], found["mixers"]["50% of the parts"]
    language = found["language"]["33% of the parameters"]
    neurons = (digits["results"]["norms"], digits["results"]["dgmr"], digits["differences"]["dgmr minus norms"])
    cut = language["results"]["olica as published"]
    training = found["distilled"]["training"]["distill_features"]
    whole, inner = mixers["results"]["SparseSSM"], parts["results"]["inner"]
    ways = (
        *(parts["results"][name] for name in ("sparsegpt", "sparsegpt, shared")),
        parts["differences"]["sparsegpt, shared minus sparsegpt"],
    )
    mamba = "the Mamba in bench/models"
    what = (
        f"three quarters of the neurons, then {training['steps']} steps of distill_features, relative error of the logits of the digits' "
        "vision transformer, norms instead of it"
    )
    return {
        "dgmr": {"figure": told_beside(what, *neurons, "relative_error"), "test": "tests/structure/test_dgmr.py"},
        "distill_features": {"figure": told_beside(what, *neurons, "relative_error"), "test": "tests/tune/test_distill_features.py"},
        "olica": {
            "figure": told("a third of all parameters removed", cut["perplexity_before"], cut["perplexity"], cut["kl"]),
            "test": "tests/structure/test_olica.py",
        },
        "sparse_ssm": {
            "figure": told(
                "half of all decays, convolutions and projections", whole["perplexity_before"], whole["perplexity"], whole["kl"], mamba
            ),
            "test": "tests/structure/test_sparse_ssm.py",
        },
        "sparse_ssm_inner": {
            "figure": told("half of convolution and time step", inner["perplexity_before"], inner["perplexity"], inner["kl"], mamba),
            "test": "tests/structure/test_sparse_ssm_inner.py",
        },
        "sparse_ssm_share": {
            "figure": told_beside(
                f"half of the projections by sparsegpt, KL divergence on {mamba}, shared evenly instead of it", *ways, "kl"
            ),
            "test": "tests/weights/test_sparse_ssm_share.py",
        },
    }


def told_beside(words: str, without: dict, with_it: dict, difference: dict, metric: str) -> str:
    """A setting, and a figure without the method and with it."""
    moved = difference[f"{metric}_difference"]
    ends = f"difference {moved['value']:.4f}, 95 % interval {moved['low']:.4f} to {moved['high']:.4f}"
    return f"{words}: {without[metric]['value']:.4f} without it, {with_it[metric]['value']:.4f} with it ({ends})"


def _read(name: str) -> dict:
    return json.loads((HERE / "results" / name).read_text())


def told(
    words: str, before: dict[str, float], after: dict[str, float], kl: dict[str, float], model: str = "the model inside the package"
) -> str:
    """A setting and its figures in a sentence."""
    lost = f"KL divergence {kl['value']:.4f} (95 % interval {kl['low']:.4f} to {kl['high']:.4f})"
    return f"{words}, on {model}: perplexity {before['value']:.3f} to {after['value']:.3f}, {lost}"


if __name__ == "__main__":
    main()
