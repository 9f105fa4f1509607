"""Inputs rounded to 8 bits and fewer, on the model inside the package: what each kind of grid costs.

Usage: python bench/activations.py            (writes bench/results/activations.json; a run of half a minute for each row)

All have the same weights of 8 or 4 bits, the same calibration and the same held-out windows. Results that are in bench/build are kept.
"""

from __future__ import annotations

import json
from pathlib import Path

import thrifty
from thrifty.measure.hardware import hardware, versions

HERE = Path(__file__).parent
BUILD = HERE / "build" / "activations"
WEIGHTS = {"8 bits": "bits: 8, group_size: 0", "4 bits": "bits: 4, group_size: 32"}
INPUTS = {
    "not rounded": None,
    "8 bits, a grid each token": "dynamic",
    "8 bits, a grid each call": "{dynamic: {per: tensor, symmetric: false}}",
    "8 bits, fixed, min_max": "{static: {rule: min_max}}",
    "8 bits, fixed, percentile": "{static: {rule: percentile}}",
    "8 bits, fixed, mse": "{static: {rule: mse}}",
    "6 bits, a grid each token": "{dynamic: {bits: 6}}",
    "4 bits, a grid each token": "{dynamic: {bits: 4}}",
}
ROWS = [("8 bits", name) for name in INPUTS] + [("4 bits", name) for name in ("not rounded", "8 bits, a grid each token")]


def main() -> None:
    rows = [{"weights": weights, "inputs": inputs, **run(weights, inputs)} for weights, inputs in ROWS]
    summary = {"hardware": hardware(), "versions": versions(), "rows": rows}
    path = HERE / "results" / "activations.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def run(weights: str, inputs: str) -> dict:
    """One row's figures."""
    activation = "" if INPUTS[inputs] is None else f", activation: {INPUTS[inputs]}"
    recipe = f"gptq: {{{WEIGHTS[weights]}{activation}}}"
    found = thrifty.compress(recipe=recipe, out=BUILD / f"{weights} {inputs}".replace(" ", "-"), speed=False)
    return {"recipe": recipe, **{key: found[key] for key in ("bits_per_weight", "perplexity", "kl", "top1_agreement")}}


if __name__ == "__main__":
    main()
