"""Rounded inputs after `coqmoe`, and recalibrated weights of `q_sam2`, trained or not, on a model that nothing was tuned on and on the one
in the package.

Usage: python bench/vision.py [PART ...]        (writes bench/results/vision.json; what is in bench/build/vision is scored again, not made)

Parts: digits_inputs, digits_weights, digits_trained, embedded_weights, embedded_inputs; all of them without a name.

The first is the vision transformer of training/digits, calibrated on images that it was trained on and judged on the 599 that were held
out: how many it recognises, the relative error of its logits, and the KL divergence of its classes. Every method gets the same images or
windows; differences are taken image by image or window by window, so an interval of one that holds 0 means that neither is better.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from judge import BUILD, HERE, RESULTS, Judge, beside, figures, write
from torch import Tensor
from transformers import AttentionInterface

import thrifty
from thrifty.api.request import Request, prepare
from thrifty.core import log_sqrt2
from thrifty.data import load_rows
from thrifty.measure.hardware import hardware, versions
from thrifty.measure.hidden import RowScores, score_classes
from thrifty.measure.intervals import mean_interval, ratio_interval
from thrifty.models import open_model
from thrifty.pipeline.run import run

HOME = BUILD / "vision"
DIGITS = HERE / "models" / "digits-vit"
WIDTHS = {"8 and 8 bits": (8, 0, 8), "8 and 4 bits": (8, 0, 4), "4 and 8 bits": (4, 32, 8), "4 and 4 bits": (4, 32, 4)}
"""Weights and inputs: bits of weights, inputs that share a scale of theirs, bits of inputs."""
REWRITES: dict[str, list[Any]] = {
    "as it is": [],
    "smoothquant": [{"smoothquant": {}}],
    "coqmoe": [{"coqmoe": {}}],
    "coqmoe, strength 0.5": [{"coqmoe": {"strength": 0.5}}],
}
SOLVERS: dict[str, tuple[Any, str | None]] = {
    "round": ("round", None),
    "q_sam2 and round": ({"q_sam2": {}}, "round"),
    "obs": ("obs", None),
    "q_sam2 and obs": ({"q_sam2": {"by": "obs"}}, "obs"),
}
"""The solver, and what it is beside."""
TRAINED: dict[str, tuple[Any, dict[str, Any] | None]] = {
    "round": ("round", None),
    "q_sam2": ("q_sam2", None),
    "round, then range": ("round", {"ends": "range"}),
    "round, then learned": ("round", {"ends": "learned"}),
    "round, then statistics": ("round", {"ends": "statistics"}),
    "q_sam2, then range": ("q_sam2", {"ends": "range"}),
    "q_sam2, then learned": ("q_sam2", {"ends": "learned"}),
    "q_sam2, then statistics": ("q_sam2", {"ends": "statistics"}),
}
"""The solver, and how `distill` sets the ends of grids after it."""
BESIDE = (
    ("round, then statistics", "round, then range"),
    ("round, then statistics", "round, then learned"),
    ("q_sam2, then range", "round, then range"),
    ("q_sam2, then statistics", "round, then range"),
    ("q_sam2, then statistics", "round, then statistics"),
    ("q_sam2, then statistics", "q_sam2, then range"),
    ("q_sam2, then statistics", "q_sam2, then learned"),
    ("q_sam2, then statistics", "q_sam2"),
)
STEPS, BATCH = 192, 32


class Images:
    """The digits: what results are calibrated on, and how they are judged."""

    def __init__(self) -> None:
        self.model, folder = DIGITS, HOME / "digits"
        sys.path.insert(0, str(HERE.parent / "training" / "digits"))
        from images import write as write_images

        if not folder.exists():
            write_images(folder)
        config = open_model(DIGITS).config
        wanted = {"calibration": ("train", 384), "evaluation": ("held-out", 599)}
        self.rows = {
            purpose: load_rows(
                folder=DIGITS, config=config, kind="vision", purpose=purpose, images=str(folder / split), samples=samples, seed=0
            )
            for purpose, (split, samples) in wanted.items()
        }
        self.expected = self._logits(thrifty.load(DIGITS, dtype=torch.float32))

    def inputs(self, samples: int) -> dict[str, Tensor]:
        """So many images to calibrate on."""
        return {"pixel_values": self.rows["calibration"].inputs["pixel_values"][:samples]}

    def scores(self, folder: Path, attention: str | None = None) -> RowScores:
        """A result beside the original."""
        model = thrifty.load(folder, dtype=torch.float32)
        if attention:
            model.set_attn_implementation(attention)
        return score_classes(self.expected, self._logits(model), self.rows["evaluation"].labels)

    def _logits(self, model: torch.nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(pixel_values=part).logits for part in self.rows["evaluation"].inputs["pixel_values"].split(128)])

    @staticmethod
    def figures(found: RowScores) -> dict:
        return {
            "accuracy_before": mean_interval(found.right_before).to_json(),
            "accuracy": mean_interval(found.right_after).to_json(),
            "relative_error": ratio_interval(found.error, found.norm).to_json(),
            "kl": mean_interval(found.kl).to_json(),
        }

    @staticmethod
    def beside(ours: RowScores, theirs: RowScores) -> dict:
        return {
            "accuracy_difference": mean_interval(ours.right_after - theirs.right_after).to_json(),
            "relative_error_difference": ratio_interval(ours.error - theirs.error, ours.norm).to_json(),
            "kl_difference": mean_interval(ours.kl - theirs.kl).to_json(),
        }


class Windows(Judge):
    """The model inside the package in the same words."""

    figures, beside = staticmethod(figures), staticmethod(beside)

    def inputs(self, samples: int) -> dict[str, Tensor]:
        """So many windows to calibrate on."""
        return {"input_ids": self.rows["calibration"].inputs["input_ids"][:samples]}


def made(judge: Images | Windows, name: str, steps: list[Any], samples: int) -> Path:
    """The folder of a result."""
    out = HOME / judge.model.name / name.replace(" ", "-").replace(",", "")
    if not (out / "certificate.json").exists():
        job = prepare(Request(judge.model, {"steps": steps}, calibration=judge.inputs(samples)))
        run(job, out, force=True, finish=lambda folder, certificate: None)
    return out


def inputs(judge: Images | Windows, samples: int, rules: Iterable[str], widths: Iterable[str], rewrites: Iterable[str]) -> list[dict]:
    """Inputs on one fixed grid a matrix, after each rewrite."""
    rows = []
    for rule in rules:
        for width in widths:
            bits, group_size, activation = WIDTHS[width]
            grid = {"bits": bits, "group_size": group_size, "activation": {"static": {"bits": activation, "rule": rule}}}
            found = {
                name: judge.scores(made(judge, f"{rule} {width} {name}", [*steps, {"rtn": grid}], samples))
                for name, steps in REWRITES.items()
                if name in rewrites
            }
            differences = {name: judge.beside(scores, found["as it is"]) for name, scores in found.items() if name != "as it is"}
            results = {name: judge.figures(scores) for name, scores in found.items()}
            rows.append({"weights and inputs": width, "range": rule, "results": results, "minus as it is": differences})
    return rows


def weights(judge: Images | Windows, samples: int, group_size: int, widths: Iterable[int], solvers: Iterable[str]) -> list[dict]:
    """Weights of few bits on grids of their whole range, by each solver."""
    rows = []
    for bits in widths:
        into = {"int": {"bits": bits, "group_size": group_size, "range": "minmax"}}
        folders = {
            name: made(judge, f"{bits} bits {group_size} {samples} {name}", [{"solve": {"by": by, "into": into}}], samples)
            for name, (by, _) in SOLVERS.items()
            if name in solvers
        }
        found = {name: judge.scores(folder) for name, folder in folders.items()}
        rows.append(
            {
                "bits": bits,
                "group_size": group_size,
                "calibration": samples,
                "results": {name: {**judge.figures(scores), **changed(folders[name])} for name, scores in found.items()},
                "differences": {
                    f"{name} minus {plain}": judge.beside(found[name], found[plain])
                    for name, (_, plain) in SOLVERS.items()
                    if plain and name in solvers
                },
            }
        )
    return rows


def changed(folder: Path) -> dict[str, float]:
    """How many of the matrices were recalibrated, and what the float model may lose by it, at most of any matrix."""
    layers = json.loads((folder / "certificate.json").read_text())["layers"]
    lost = [layer["details"]["float_error"] for layer in layers if "float_error" in layer["details"]]
    return {"matrices": len(layers), "recalibrated": len(lost), "largest_float_error": max(lost, default=0.0)}


def attention(judge: Images) -> dict[str, dict]:
    """Probabilities of attention of 4 bits, computed here and stored nowhere: powers of the square root of two, and even steps."""

    def register(name: str, rounded: Any) -> str:
        def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any) -> Any:
            scores = query @ key.mT * scaling
            out = rounded(scores if mask is None else scores + mask, value)
            return out.transpose(1, 2).contiguous(), None

        AttentionInterface.register(name, forward)
        return name

    def even(scores: Tensor, value: Tensor) -> Tensor:
        probabilities = scores.softmax(-1)
        step = probabilities.amax() / 15
        return (probabilities / step).round().mul(step) @ value

    kinds = {
        "powers of the square root of two": register("log_sqrt2", lambda scores, value: log_sqrt2.attend(scores, value, 4)),
        "even steps": register("even", even),
    }
    found = {name: judge.scores(DIGITS, kind) for name, kind in kinds.items()}
    first, second = found.values()
    return {**{name: judge.figures(scores) for name, scores in found.items()}, "difference": judge.beside(first, second)}


def digits_inputs() -> dict:
    images = Images()
    few = ("8 and 4 bits", "4 and 4 bits")
    rows = [*inputs(images, 384, ("mse",), few, REWRITES), *inputs(images, 384, ("min_max",), WIDTHS, REWRITES)]
    return {"images": int(images.rows["evaluation"].rows), "rows": rows, "attention": attention(images)}


def digits_weights() -> dict:
    images = Images()
    rows = [row for samples in (384, 16) for row in weights(images, samples, 0, (2, 3, 4), SOLVERS)]
    return {"images": int(images.rows["evaluation"].rows), "rows": rows}


def digits_trained() -> dict:
    """Training by distillation, on the images that the weights were solved with, from each start and with each kind of ends. Every row is
    written as soon as it is there."""
    images, samples, rows = Images(), 384, []
    part = {"images": int(images.rows["evaluation"].rows), "calibration": samples, "steps": STEPS, "batch": BATCH, "rows": rows}
    for bits, symmetric in ((2, True), (2, False), (3, True)):
        into = {"int": {"bits": bits, "group_size": 0, "range": "minmax", "symmetric": symmetric}}
        found = {}
        for name, (by, ends) in TRAINED.items():
            tune = [] if ends is None else [{"distill": {"steps": STEPS, "batch": BATCH, **ends}}]
            kind = f"trained {bits} {'symmetric' if symmetric else 'asymmetric'} {name}"
            found[name] = images.scores(made(images, kind, [{"solve": {"by": by, "into": into}}, *tune], samples))
        rows.append(
            {
                "bits": bits,
                "symmetric": symmetric,
                "results": {name: images.figures(scores) for name, scores in found.items()},
                "differences": {f"{one} minus {other}": images.beside(found[one], found[other]) for one, other in BESIDE},
            }
        )
        keep("digits_trained", part)
    return part


def embedded_weights() -> dict:
    windows = Windows(windows=32, tokens=256)
    return {**windows.describe(), "rows": weights(windows, 32, 32, (2, 3), ("round", "q_sam2 and round"))}


def embedded_inputs() -> dict:
    windows = Windows(windows=32, tokens=256)
    rows = inputs(windows, 32, ("mse",), ("8 and 4 bits", "8 and 8 bits"), ("as it is", "coqmoe"))
    return {**windows.describe(), "rows": rows}


PARTS = {part.__name__: part for part in (digits_inputs, digits_weights, digits_trained, embedded_weights, embedded_inputs)}


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        keep(name, PARTS[name]())


def keep(name: str, part: dict) -> None:
    """A part into the file, beside the others."""
    part = {**part, "hardware": hardware(), "versions": versions(), "load": os.getloadavg()}
    path = RESULTS / "vision.json"
    write("vision.json", {**(json.loads(path.read_text()) if path.exists() else {}), name: part})


if __name__ == "__main__":
    main()
