"""Weights of two bits in a diffusion transformer: additive codebooks beside grids, solved and then trained.

Usage: python bench/diffusion_weights.py [--steps 400] [--only NAME ...]       (writes bench/results/diffusion_weights.json)

The model, the 599 held-out images and the pairing are those of bench/diffusion.py. Solving and training read 2,396 rows: each image that
the model was trained on twice, with other noise, at other random times. All matrices of all blocks are solved. No reader of diffusers holds
codes, so results are stored dense, and `bits` counts what they stand for: codes, codebooks, scales and zero points of all matrices over
their weights. Groups of 96 stand for groups of 64, which do not divide 96 inputs. Finished results are kept in
bench/build/diffusion_weights and scored again, not made again; one that was stopped goes on where it was. With --only the file keeps what
else it holds of the same steps.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from diffusion import MODEL, Digits, load, noisy
from judge import BUILD, earlier, write
from torch import Tensor

import thrifty
from thrifty.measure.hardware import hardware, versions
from thrifty.models import open_model
from thrifty.pipeline.steps import Work
from thrifty.recipe.parse import parse_recipe
from thrifty.recipe.resolve import resolve

HOME = BUILD / "diffusion_weights"
RESULT = "diffusion_weights.json"
BATCH = 32
MOVES = 0.01


def grid(preset: str, group_size: int, *, symmetric: bool) -> str:
    """A step onto grids of 2 bits."""
    return f"{{{preset}: {{bits: 2, group_size: {group_size}, symmetric: {str(symmetric).lower()}}}}}"


def additive(by: str, codebooks: int, bits: int, more: str = "") -> str:
    """A step into sums of codewords, for groups of 8 inputs."""
    return f"{{solve: {{by: {by}, into: {{additive: {{codebooks: {codebooks}, bits: {bits}}}}}}}{more}}}"


SMALL = ", override: {'*.attn1.*': {into: {additive: {codebooks: 4, bits: 3}}}}"
"""The matrices of attention have fewer weights to share their codebooks."""

SOLVED = {
    **{
        f"{name}, {kind}, groups of {size}": grid(preset, size, symmetric=kind == "symmetric")
        for size in (32, 96)
        for name, preset in (("round", "rtn"), ("gptq", "gptq"))
        for kind in ("symmetric", "zero points")
    },
    "auto_round, zero points, groups of 32": grid("auto_round", 32, symmetric=False),
    "round, codebooks": additive("round", 4, 4),
    "obs, codebooks": additive("obs", 4, 4),
    "aqlm": additive("aqlm", 4, 4),
    "aqlm, by kind": additive("aqlm", 2, 6, SMALL),
    "aqlm, small": additive("aqlm", 3, 4),
}
TRAINED = {
    "gptq, symmetric, groups of 32, distilled": ("gptq, symmetric, groups of 32", ""),
    "gptq, zero points, groups of 32, distilled": ("gptq, zero points, groups of 32", ""),
    "aqlm, distilled": ("aqlm", ""),
    "aqlm, distilled, codes moving": ("aqlm", f", moves: {MOVES}"),
    "aqlm, small, distilled": ("aqlm, small", ""),
    "aqlm, small, distilled, codes moving": ("aqlm, small", f", moves: {MOVES}"),
}
PAIRS = [
    ("aqlm", "gptq, symmetric, groups of 32"),
    ("aqlm", "gptq, zero points, groups of 32"),
    ("aqlm", "auto_round, zero points, groups of 32"),
    ("aqlm", "obs, codebooks"),
    ("obs, codebooks", "gptq, zero points, groups of 32"),
    ("round, codebooks", "round, zero points, groups of 32"),
    ("aqlm, by kind", "gptq, symmetric, groups of 96"),
    ("aqlm, by kind", "gptq, zero points, groups of 96"),
    ("aqlm, small", "gptq, zero points, groups of 96"),
    ("aqlm, small", "gptq, zero points, groups of 32"),
    ("aqlm, small", "auto_round, zero points, groups of 32"),
    *((name, first) for name, (first, _) in TRAINED.items()),
    ("aqlm, distilled", "gptq, zero points, groups of 32, distilled"),
    ("aqlm, distilled, codes moving", "gptq, zero points, groups of 32, distilled"),
    ("aqlm, small, distilled", "gptq, zero points, groups of 32, distilled"),
    ("aqlm, distilled, codes moving", "aqlm, distilled"),
    ("aqlm, small, distilled, codes moving", "aqlm, small, distilled"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SOLVED, *TRAINED])
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    steps, judge, rows = arguments.steps, Digits(), training_rows()
    tune = f"distill: {{steps: {steps}, batch: {BATCH}"
    recipes = SOLVED | {name: f"{SOLVED[first]}, {{{tune}{more}}}}}" for name, (first, more) in TRAINED.items()}
    found, differences = earlier(RESULT, steps)
    scores: dict[str, Tensor] = {}
    for name, recipe in recipes.items():
        if arguments.only and name not in arguments.only:
            continue
        out = HOME / f"{steps if name in TRAINED else 0} {name}"
        made = thrifty.compress(MODEL, f"{{steps: [{recipe}]}}", rows, evaluation=judge.rows, out=out, speed=False)
        scores[name] = judge.scores(thrifty.load(out, torch.float32))
        sizes = {"bits": bits_of(recipe), "weight_error": weight_error(out), "seconds": made["seconds"]}
        found[name] = {"name": name, "recipe": recipe, **sizes, **judge.figures(scores[name])}
        pairs = [(one, other) for one, other in PAIRS if {one, other} <= scores.keys()]
        differences |= {f"{one} minus {other}": judge.beside(scores[one], scores[other]) for one, other in pairs}
        head = {**judge.describe(), "calibration": len(rows["timestep"]), "steps": steps, "batch": BATCH}
        machine = {"hardware": hardware(), "versions": versions(), "load": os.getloadavg(), "threads": torch.get_num_threads()}
        write(RESULT, {**head, **machine, "rows": [found[name] for name in recipes if name in found], "differences": differences})


def training_rows() -> dict[str, Tensor]:
    """Each image that the model was trained on twice."""
    images, labels = load("train")
    rows, _ = noisy(images.repeat(2, 1, 1, 1), labels.repeat(2), torch.Generator().manual_seed(3))
    return rows


def bits_of(recipe: str) -> float:
    """Bits of a weight of the matrices that a recipe solves, with all that their values are made of."""
    anatomy = open_model(MODEL).anatomy
    work = Work.of(resolve(parse_recipe(f"{{steps: [{recipe}]}}"), anatomy))
    total = 0
    for linear in anatomy.linears:
        target = work.treatments[linear.path][-1].target
        total += target.outline(linear.out_features, linear.in_features).stored_bits
    return total / sum(linear.out_features * linear.in_features for linear in anatomy.linears)


def weight_error(out: Path) -> float:
    """What all matrices of a result miss of the original's: ||W - V||^2 over ||W||^2, whatever their inputs are."""
    before, after = open_model(MODEL), open_model(out)
    pairs = [(before.read(linear.source).float(), after.read(linear.source).float()) for linear in before.anatomy.linears]
    return float(sum((old - new).square().sum() for old, new in pairs) / sum(old.square().sum() for old, _ in pairs))


if __name__ == "__main__":
    main()
