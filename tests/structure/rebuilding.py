"""A tiny model's first block for steps that rebuild it, and such a step from a recipe to a folder that transformers loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

import thrifty
from tests.structure.views import view_of
from tests.tiny import inputs
from thrifty.core.statistics import Statistics
from thrifty.models import Source
from thrifty.pipeline.reshape import CutView
from thrifty.structure.base import Seen


def block_of(source: Source, name: str, seed: int = 0) -> tuple[CutView, Seen, dict[str, Tensor]]:
    """(the first block, what was seen of it with products, the inputs of each stage [tokens, width])."""
    view, seen, read = view_of(source, name, seed=seed)
    return view, dataclasses.replace(seen, grams={space: Statistics.of(values) for space, values in read.items()}), read


def compressed(folder: Path, name: str, out: Path, step: dict[str, Any]) -> dict[str, Any]:
    """The certificate of one step; what transformers loads was compared with what the walk has seen."""
    calibration, judged = inputs(name, rows=6, length=20, seed=1), inputs(name, rows=3, length=20, seed=2)
    return thrifty.compress(folder, {"steps": [step]}, calibration, evaluation=judged, out=out, speed=False, verify="full")


def error(inputs: Tensor, weight: Tensor, other: Tensor) -> float:
    """The summed squared difference of both outputs."""
    return float((inputs.double() @ (weight - other).double().T).square().sum())
