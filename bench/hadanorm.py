"""Inputs of few bits after centring, scaling and rotation, on the vision transformer of training/digits.

Usage: python bench/hadanorm.py     (writes bench/results/hadanorm.json; what is in bench/build/vision is scored again, not made again)

Every token's inputs are rounded on a grid of its own; weights have a scale a row and are rounded to the nearest. Results are judged as in
bench/vision.py, image by image, and each is paired with the one without a rewrite, and with the rotation alone.
"""

from __future__ import annotations

from typing import Any

from judge import write
from vision import Images, made

from thrifty.measure.hardware import hardware, versions

WIDTHS = {"8 and 4 bits": (8, 4), "4 and 4 bits": (4, 4), "8 and 3 bits": (8, 3)}
"""Weights and inputs."""
REWRITES: dict[str, list[Any]] = {
    "as it is": [],
    "smoothquant": [{"smoothquant": {}}],
    "rotate": [{"rotate": {}}],
    "rotate, hadamard": [{"rotate": {}}, {"hadamard": {}}],
    "hadanorm, alpha 0": [{"hadanorm": {"alpha": 0.0}}],
    "hadanorm, alpha 0.5": [{"hadanorm": {}}],
    "rotate, hadanorm, alpha 0": [{"rotate": {}}, {"hadanorm": {"alpha": 0.0}}],
    "rotate, hadanorm, alpha 0.5": [{"rotate": {}}, {"hadanorm": {}}],
}


def main() -> None:
    judge, rows = Images(), []
    for width, (bits, inputs) in WIDTHS.items():
        step = {"rtn": {"bits": bits, "group_size": 0, "activation": {"dynamic": {"bits": inputs}}}}
        found = {name: judge.scores(made(judge, f"{width} {name}", [*steps, step], 128)) for name, steps in REWRITES.items()}
        for name, scores in found.items():
            beside = {f"minus {other}": judge.beside(scores, found[other]) for other in ("as it is", "rotate, hadamard") if other != name}
            rows.append({"weights and inputs": width, "rewrite": name, **judge.figures(scores), **beside})
    write("hadanorm.json", {"hardware": hardware(), "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
