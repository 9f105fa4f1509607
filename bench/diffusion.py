"""Inputs of few bits in a diffusion transformer, on the one of training/dit that nothing was tuned on.

Usage: python bench/diffusion.py     (writes bench/results/diffusion.json)

Calibrated on images that it was trained on, with noise, at random times; judged on the 599 that were held out, each at one time, with the
same noise for all: the relative error of the noise that is predicted, and what that costs in loss. Differences are taken row by row, so an
interval of one that holds 0 means that neither is better.

Inputs are rounded here, for no reader of a diffusion transformer rounds any: those of every linear that reads tokens, each token on a
grid of its own, its weights to the nearest, a scale a row. What precedes that is HadaNorm's order of operations, and parts of it:

    y = ((x - mu) / s) H,   out = round(y) round(H^T diag(s) W) + mu W + b

mu is the mean over the tokens of one row (of all calibration rows where it says static), s the mean spread of a channel to the power alpha,
H a rotation by a Hadamard matrix.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from judge import HERE, write
from torch import Tensor, nn

import thrifty
from thrifty.core.hadamard import Rotation
from thrifty.measure.hardware import hardware, versions
from thrifty.measure.hidden import RowScores, score_hidden
from thrifty.measure.intervals import mean_interval, ratio_interval
from thrifty.models import open_model
from thrifty.weights.activation.dynamic import Dynamic
from thrifty.weights.target.int import Int
from thrifty.weights.transform.hadanorm import spread

sys.path.insert(0, str(HERE.parent / "training" / "dit"))
from train import held_out_loss, load, noisy

MODEL = HERE / "models" / "digits-dit"
CALIBRATION = 384
WIDTHS = {"8 and 4 bits": (8, 4), "4 and 4 bits": (4, 4), "8 and 3 bits": (8, 3)}
"""Weights and inputs."""


@dataclass(frozen=True)
class Rewrite:
    """What precedes rounding."""

    mean: str = ""
    alpha: float | None = None
    turned: bool = False


REWRITES = {
    "as it is": Rewrite(),
    "centred": Rewrite("dynamic"),
    "hadamard": Rewrite(turned=True),
    "hadanorm, alpha 0": Rewrite("dynamic", turned=True),
    "hadanorm, alpha 0.5": Rewrite("dynamic", 0.5, True),
    "hadanorm, alpha 0, static": Rewrite("static", turned=True),
    "hadanorm, alpha 0.5, static": Rewrite("static", 0.5, True),
}


class Digits:
    """Noisy digits: what results are calibrated on, and how they are judged."""

    def __init__(self) -> None:
        images, labels = load("train")
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:CALIBRATION]
        self.calibration, _ = noisy(images[chosen], labels[chosen], torch.Generator().manual_seed(2))
        self.rows, self.noise = noisy(*load("held-out"), torch.Generator().manual_seed(0))
        self.model = thrifty.load(MODEL, torch.float32)
        self.expected = predicted(self.model, self.rows)

    @cached_property
    def seen(self) -> dict[str, Tensor]:
        """What every linear that reads tokens reads of the calibration rows, [rows, tokens, in], by path."""
        model, found = thrifty.load(MODEL, torch.float32), {}
        for linear in open_model(MODEL).anatomy.linears:
            if linear.role != "other":
                module = model.get_submodule(linear.path)
                module.register_forward_pre_hook(lambda _, arguments, path=linear.path: found.__setitem__(path, arguments[0]))
        with torch.no_grad():
            model(**self.calibration)
        return found

    def scores(self, model: nn.Module) -> tuple[RowScores, Tensor]:
        """(the prediction beside the original's, by how much the loss of each row rises)."""
        found = predicted(model, self.rows)
        rise = (found - self.noise).square().mean((1, 2, 3)) - (self.expected - self.noise).square().mean((1, 2, 3))
        return score_hidden(self.expected, found), rise.double()

    @staticmethod
    def figures(found: tuple[RowScores, Tensor]) -> dict[str, Any]:
        scores, rise = found
        return {"relative_error": ratio_interval(scores.error, scores.norm).to_json(), "loss_rise": mean_interval(rise).to_json()}

    @staticmethod
    def beside(ours: tuple[RowScores, Tensor], theirs: tuple[RowScores, Tensor]) -> dict[str, Any]:
        return {
            "relative_error_difference": ratio_interval(ours[0].error - theirs[0].error, ours[0].norm).to_json(),
            "loss_difference": mean_interval(ours[1] - theirs[1]).to_json(),
        }

    def describe(self) -> dict[str, Any]:
        """The head of a part."""
        return {"images": len(self.noise), "calibration": CALIBRATION, "loss": held_out_loss(self.model)}


def predicted(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """The noise that a model finds in rows."""
    with torch.inference_mode():
        parts = zip(*(tensor.split(128) for tensor in rows.values()), strict=True)
        return torch.cat([model(**dict(zip(rows, part, strict=True))).sample for part in parts])


class Rounded(nn.Module):
    """A linear whose weights and inputs are rounded, behind a rewrite of both."""

    def __init__(self, linear: nn.Linear, rewrite: Rewrite, bits: tuple[int, int], seen: Tensor) -> None:
        super().__init__()
        width = linear.in_features
        self.linear, self.static, self.mean = linear, rewrite.mean == "static", rewrite.mean
        self.register_buffer("average", seen.mean((0, 1)))
        within = seen.var(1, correction=0) if rewrite.mean != "static" else seen.var((0, 1), correction=0)[None]
        self.scale = torch.ones(width) if rewrite.alpha is None else spread(within.sqrt().mean(0).square(), rewrite.alpha)
        self.turn: Callable[[Tensor], Tensor] = Rotation.random(width, 0).of if rewrite.turned else lambda values: values
        weight = self.turn(linear.weight.detach() * self.scale)
        self.weight = Int(bits=bits[0], group_size=0).fit(weight).project(weight)
        self.round = Dynamic(bits=bits[1]).fit(None)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.mean:
            return nn.functional.linear(self.round(self.turn(inputs / self.scale)), self.weight, self.linear.bias)
        mean = self.average if self.static else inputs.mean(1, keepdim=True)
        centred = nn.functional.linear(self.round(self.turn((inputs - mean) / self.scale)), self.weight, self.linear.bias)
        return centred + nn.functional.linear(mean, self.linear.weight)


def rounded(judge: Digits, rewrite: Rewrite, bits: tuple[int, int]) -> nn.Module:
    """The model, its linears that read tokens rounded."""
    model = thrifty.load(MODEL, torch.float32)
    for path, seen in judge.seen.items():
        model.set_submodule(path, Rounded(model.get_submodule(path), rewrite, bits, seen))
    return model


def inputs(judge: Digits) -> list[dict[str, Any]]:
    """Every rewrite at every width, beside none and beside the rotation alone."""
    rows = []
    for width, bits in WIDTHS.items():
        found = {}
        for name, rewrite in REWRITES.items():
            found[name] = judge.scores(rounded(judge, rewrite, bits))
        for name, scores in found.items():
            beside = {f"minus {other}": judge.beside(scores, found[other]) for other in ("as it is", "hadamard") if other != name}
            rows.append({"weights and inputs": width, "rewrite": name, **judge.figures(scores), **beside})
    return rows


def main() -> None:
    judge = Digits()
    found = {**judge.describe(), "rows": inputs(judge), "hardware": hardware(), "versions": versions(), "load": os.getloadavg()}
    write("diffusion.json", found)


if __name__ == "__main__":
    main()
