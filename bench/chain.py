"""Chains (cut, quantize, train) beside quantizing alone and pruning alone, on the model inside the package.

Usage: python bench/chain.py [--steps 256]                 (writes bench/results/chain.json)
       python bench/chain.py --library [--steps 2048]      (writes bench/results/chain_library.json)

Everything is stored in the container at its own rate, so that bytes of the files can be compared. All get the same calibration text (what
comes with the package, or with --library two million tokens of the standard library of this Python) and are judged on the same held-out
windows; differences are taken window by window, so that an interval of one that holds 0 means that neither is better. Finished results are
kept in bench/build/chain and scored again, not made again; a run that was stopped goes on where it was.
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

HOME = BUILD / "chain"
EVALUATION = {"samples": 8, "tokens": 256}
CHAIN = "a quarter of the neurons, 4 bits"
HEALED = f"{CHAIN}, trained twice"
RANKS = "a quarter of the weights by rank, 4 bits"
TRAINED = f"{RANKS}, trained"


def recipes(steps: int) -> dict[str, list[dict[str, Any]]]:
    """The steps of every result, by name."""
    cut = {"flap": {"ratio": 0.25, "cut": ["neurons"]}}
    heal = {"distill": {"steps": steps}}
    grid = {"group_size": 32, "symmetric": False}
    ranks = {"fisher_svd": {"ratio": 0.25, "multiple_of": 32}}
    gently = {"distill": {"steps": steps, "rate": 0.0005}}
    return {
        "4 bits": [{"gptq": {"bits": 4, **grid}}],
        "3 bits": [{"gptq": {"bits": 3, **grid}}],
        "3 bits, trained": [{"gptq": {"bits": 3, **grid}}, {"distill": {"steps": 2 * steps}}],
        "3 bits, auto_round": [{"auto_round": {"bits": 3, **grid}}],
        "3 bits, auto_round, trained": [{"auto_round": {"bits": 3, **grid}}, gently],
        "half of the neurons": [{"flap": {"ratio": 0.5, "cut": ["neurons"]}}],
        "half of the weights": [{"sparsegpt": {"sparsity": 0.5}}],
        "weights in as many bytes as the chain": [{"sparsegpt": {"sparsity": 0.81}}],
        CHAIN: [cut, {"gptq": {"bits": 4, **grid}}],
        f"{CHAIN}, trained between": [cut, heal, {"gptq": {"bits": 4, **grid}}],
        HEALED: [cut, heal, {"gptq": {"bits": 4, **grid}}, heal],
        RANKS: [ranks, {"auto_round": {"bits": 4, **grid}}],
        TRAINED: [ranks, {"auto_round": {"bits": 4, **grid}}, gently],
    }


EACH = ("3 bits", "3 bits, trained", "half of the neurons", "half of the weights", "weights in as many bytes as the chain")
MORE = ("3 bits", "3 bits, auto_round", "3 bits, auto_round, trained", *EACH[1:])
PAIRS = [
    *((TRAINED, other) for other in MORE),
    (RANKS, "3 bits"),
    (RANKS, "3 bits, auto_round"),
    *((HEALED, other) for other in EACH),
    (CHAIN, "3 bits"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--library", action="store_true", help="train on the standard library instead of the text inside the package")
    parser.add_argument("--only", nargs="+", choices=list(recipes(0)), help="the file keeps what else it holds of the same steps")
    arguments = parser.parse_args()
    steps = arguments.steps or (2048 if arguments.library else 256)
    text = library() if arguments.library else None
    calibration = {"text": str(text), "samples": 8192, "tokens": 256} if text else {"samples": 1024, "tokens": 256}
    judge = Judge()
    result = f"chain{'_library' if arguments.library else ''}.json"
    rows, differences = earlier(result, steps) if arguments.only else ({}, {})
    scores: dict[str, Any] = {}
    for name, recipe in recipes(steps).items():
        if name not in (arguments.only or recipes(steps)):
            continue
        out = HOME / f"{'library ' if arguments.library else ''}{steps} {name}"
        data = {"calibration": calibration, "evaluation": EVALUATION}
        found = thrifty.compress(recipe={**data, "steps": recipe}, out=out, speed=False, format="thrifty")
        scores[name] = judge.scores(out, whole=False)
        kept = {key: found[key] for key in ("seconds", "bytes", "peak_rss_bytes", "links")}
        rows[name] = {"name": name, "recipe": recipe, **figures(scores[name]), **kept}
        differences |= {f"{one} minus {other}": beside(scores[one], scores[other]) for one, other in PAIRS if {one, other} <= scores.keys()}
        head = {
            **judge.describe(),
            "calibration": calibration | {"text": text.name} if text else calibration,
            "steps": steps,
            "hardware": hardware(),
        }
        machine = {"load": os.getloadavg(), "threads": torch.get_num_threads()}
        write(result, {**head, **machine, "rows": [rows[one] for one in recipes(steps) if one in rows], "differences": differences})


if __name__ == "__main__":
    main()
