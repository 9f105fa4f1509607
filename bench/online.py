"""What turning the inputs of down-projections while the model runs changes, on the model inside the package, beside the offline rotations.

Usage: python bench/online.py [WORD ...]       (writes bench/results/online.json; rows whose name holds a word, all without one)

32 calibration and 32 held-out windows of 512 tokens, all results in our container; every row is paired with the same weights without a
rotation and with those of `rotate` and `hadamard`, window by window. Results that are in bench/build are not made again.
"""

from __future__ import annotations

import shutil
import sys

from judge import BUILD, Judge, beside, figures, write

import thrifty
from thrifty.measure.hardware import hardware, versions

OFFLINE = ("rotate: {}", "hadamard: {}")
ROTATIONS = {"none": (), "online": ("online: {}",), "offline": OFFLINE, "offline and online": (*OFFLINE, "online: {}")}
WEIGHTS = {
    "4 bits, inputs 4 bits": "gptq: {bits: 4, group_size: 0, activation: {dynamic: {bits: 4}}}",
    "4 bits, inputs 6 bits": "gptq: {bits: 4, group_size: 0, activation: {dynamic: {bits: 6}}}",
    "3 bits, a scale a row": "gptq: {bits: 3, group_size: 0}",
}


def main() -> None:
    judge = Judge(windows=32)
    names = [name for name in WEIGHTS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    rows = [row for name in names for row in measured(judge, name)]
    write("online.json", {"hardware": hardware(), "versions": versions(), **judge.describe(), "rows": rows})


def measured(judge: Judge, name: str) -> list[dict]:
    """One kind of weights with each rotation, and what each changes against none and against the offline ones."""
    scores = {rotation: judge.scores(result(judge, name, rotation)) for rotation in ROTATIONS}
    return [
        {"weights": name, "rotation": rotation, **figures(found)}
        | {f"minus {other}": beside(found, scores[other]) for other in ("none", "offline") if other != rotation}
        for rotation, found in scores.items()
    ]


def result(judge: Judge, name: str, rotation: str):
    """The folder of one result; judged by `Judge`, so that it is not here."""
    out = BUILD / "online" / f"{name} {rotation}".replace(" ", "-").replace(",", "")
    if not (out / "certificate.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        steps = "".join(f"  - {step}\n" for step in (*ROTATIONS[rotation], WEIGHTS[name]))
        thrifty.compress(judge.model, f"steps:\n{steps}", judge.rows["calibration"], out=out, speed=False, format="thrifty")
    return out


if __name__ == "__main__":
    main()
