"""Inputs rounded to 8 bits and fewer: what each kind of grid costs, on the model inside the package and on the digits of bench/models.

Usage: python bench/activations.py            (writes bench/results/activations.json; a run of half a minute for each row)

Rows of one model and one kind of weights are solved, calibrated and judged alike. Rows that stand in the results are not measured again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

import thrifty
from thrifty.measure.hardware import hardware, versions

HERE = Path(__file__).parent
BUILD = HERE / "build" / "activations"
RESULT = HERE / "results" / "activations.json"
DIGITS = HERE / "models" / "digits-vit"


def floats(settings: str) -> str:
    """A step whose weights become small floats."""
    return f"solve: {{by: obs, into: {{float: {{{settings}}}}}"


WEIGHTS = {
    "8 bits": "gptq: {bits: 8, group_size: 0",
    "4 bits": "gptq: {bits: 4, group_size: 32",
    "FP8": floats("format: e4m3, group_size: 0"),
    "MXFP8": floats("format: e4m3, group_size: 32, scale: power_of_two"),
    "MXFP4": floats("format: e2m1, group_size: 32, scale: power_of_two"),
    "NVFP4": floats("format: e2m1, group_size: 16, scale: e4m3"),
}
INPUTS = {
    "not rounded": None,
    "8 bits, a grid each token": "dynamic",
    "8 bits, a grid each call": "{dynamic: {per: tensor, symmetric: false}}",
    "8 bits, fixed, min_max": "{static: {rule: min_max}}",
    "8 bits, fixed, percentile": "{static: {rule: percentile}}",
    "8 bits, fixed, mse": "{static: {rule: mse}}",
    "6 bits, a grid each token": "{dynamic: {bits: 6}}",
    "4 bits, a grid each token": "{dynamic: {bits: 4}}",
    "8 bits, fixed by channel, min_max": "{static: {per: channel, rule: min_max}}",
    "8 bits, fixed by channel, percentile": "{static: {per: channel, rule: percentile}}",
    "8 bits, fixed by channel, mse": "{static: {per: channel, rule: mse}}",
    "4 bits, fixed, mse": "{static: {bits: 4}}",
    "4 bits, fixed by channel, min_max": "{static: {bits: 4, per: channel, rule: min_max}}",
    "4 bits, fixed by channel, percentile": "{static: {bits: 4, per: channel, rule: percentile}}",
    "4 bits, fixed by channel, mse": "{static: {bits: 4, per: channel, rule: mse}}",
    "FP8, a scale each token": "float_inputs",
    "FP8, a fixed scale": "{float_inputs: {per: fixed}}",
    "MXFP8": "{float_inputs: {format: mxfp8}}",
    "MXFP4": "{float_inputs: {format: mxfp4}}",
    "NVFP4": "{float_inputs: {format: nvfp4}}",
}
INTEGERS = [name for name in INPUTS if name == "not rounded" or "bits" in name]
FEW = [name for name in INTEGERS if name not in ("8 bits, a grid each call", "6 bits, a grid each token")]
ROWS = [
    *(("package", "8 bits", name) for name in INTEGERS),
    *(("package", "4 bits", name) for name in ("not rounded", "8 bits, a grid each token")),
    *(("package", "FP8", name) for name in ("not rounded", "FP8, a scale each token", "FP8, a fixed scale")),
    *(("package", kind, name) for kind in ("MXFP8", "MXFP4", "NVFP4") for name in ("not rounded", kind)),
    *(("digits", "8 bits", name) for name in FEW),
    *(("digits", "FP8", name) for name in ("not rounded", "FP8, a scale each token", "FP8, a fixed scale")),
]
IN_GROUPS = ("MXFP8", "MXFP4", "NVFP4")
"""What compressed-tensors has for models in bfloat16 alone; both models are in float32."""


def main() -> None:
    known = {key_of(row): row for row in json.loads(RESULT.read_text())["rows"]} if RESULT.exists() else {}
    for key in ROWS:
        known[key] = known.get(key) or {**dict(zip(("model", "weights", "inputs"), key, strict=True)), **run(*key)}
        # what is measured stays, whatever comes after
        summary = {"hardware": hardware(), "versions": versions(), "rows": [known[other] for other in ROWS if other in known]}
        RESULT.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def key_of(row: dict[str, Any]) -> tuple[str, str, str]:
    """What tells rows apart."""
    return row.get("model", "package"), row["weights"], row["inputs"]


def run(model: str, weights: str, inputs: str) -> dict[str, Any]:
    """One row's figures."""
    activation = "" if INPUTS[inputs] is None else f", activation: {INPUTS[inputs]}"
    text = f"{WEIGHTS[weights]}{activation}}}"
    recipe = {"steps": [yaml.safe_load(text)], **(images() if model == "digits" else {})}
    words = {"format": "thrifty"} if inputs in IN_GROUPS else {}
    out = BUILD / f"{model} {weights} {inputs}".replace(" ", "-")
    found = thrifty.compress(*([DIGITS] if model == "digits" else []), recipe=recipe, out=out, speed=False, **words)
    kept = ("bits_per_weight", "perplexity", "kl", "top1_agreement")
    figures = {key: found[key] for key in kept if found.get(key) is not None}
    return {"recipe": text, **figures, **({"quality": found["quality"]} if model == "digits" else {})}


def images() -> dict[str, Any]:
    """Which images the digits are calibrated on and judged by, as a recipe says it."""
    folder = BUILD / "images"
    if not folder.exists():
        sys.path.insert(0, str(HERE.parent / "training" / "digits"))
        from images import write

        write(folder)
    return {
        "calibration": {"images": str(folder / "train"), "samples": 384},
        "evaluation": {"images": str(folder / "held-out"), "samples": 599},
    }


if __name__ == "__main__":
    main()
