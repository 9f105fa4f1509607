"""What rotations change, on the model inside the package: weights of few bits, and weights and inputs of 4 bits.

Usage: python bench/rotations.py [WORD ...]       (writes bench/results/rotations.json; rows whose name holds a word, all without one)

32 calibration and 32 held-out windows of 512 tokens; every row with a rotation is paired with the same weights without one, window by
window. Results that are in bench/build are not made again.
"""

from __future__ import annotations

import shutil
import sys

from judge import BUILD, Judge, beside, figures, write

import thrifty
from thrifty.measure.hardware import hardware, versions

ROTATIONS = {"none": (), "hadamard": ("hadamard: {}",), "rotate": ("rotate: {}",), "both": ("rotate: {}", "hadamard: {}")}
WEIGHTS = {
    "4 bits, inputs 4 bits": "gptq: {bits: 4, group_size: 0, activation: {dynamic: {bits: 4}}}",
    "2 bits": "gptq: {bits: 2, group_size: 32}",
    "3 bits": "gptq: {bits: 3, group_size: 32}",
    "4 bits": "gptq: {bits: 4, group_size: 32}",
    "3 bits, a scale a row": "gptq: {bits: 3, group_size: 0}",
    "4 bits, inputs 6 bits": "gptq: {bits: 4, group_size: 0, activation: {dynamic: {bits: 6}}}",
}


def main() -> None:
    judge = Judge(windows=32)
    names = [name for name in WEIGHTS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    rows = [row for name in names for row in measured(judge, name)]
    write("rotations.json", {"hardware": hardware(), "versions": versions(), **judge.describe(), "rows": rows})


def measured(judge: Judge, name: str) -> list[dict]:
    """One kind of weights with each rotation, and what each changes against none."""
    scores = {rotation: judge.scores(result(judge, name, rotation)) for rotation in ROTATIONS}
    return [
        {"weights": name, "rotation": rotation, **figures(found)}
        | ({} if rotation == "none" else {"minus none": beside(found, scores["none"])})
        for rotation, found in scores.items()
    ]


def result(judge: Judge, name: str, rotation: str):
    """The folder of one result; judged by `Judge`, so that it is not here."""
    out = BUILD / "rotations" / f"{name} {rotation}".replace(" ", "-").replace(",", "")
    if not (out / "certificate.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        steps = "".join(f"  - {step}\n" for step in (*ROTATIONS[rotation], WEIGHTS[name]))
        thrifty.compress(judge.model, f"steps:\n{steps}", judge.rows["calibration"], out=out, speed=False)
    return out


if __name__ == "__main__":
    main()
