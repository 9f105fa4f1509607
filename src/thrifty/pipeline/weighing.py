"""By what a `mix` judges its choices: how far the model's predictions move, or a block's output, and the pass that the first takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from thrifty.base.anatomy import Block
from thrifty.base.store import write_atomic
from thrifty.data import Rows
from thrifty.models import Source
from thrifty.pipeline.following import followed
from thrifty.pipeline.slopes import check_loss, directions, has_loss
from thrifty.pipeline.steps import Work
from thrifty.pipeline.walk import Walk
from thrifty.weights.preset.mix import Mix


def by_loss(source: Source, mix: Mix) -> bool:
    """Whether choices are judged by what the whole model predicts. Raises InputError where that is asked for and cannot be."""
    if mix.weigh == "loss":
        check_loss(source, "mix with weigh: loss")
    return mix.weigh != "block" and has_loss(source)


def rows_followed(source: Source, work: Work) -> int:
    """Calibration rows whose predictions are followed back through the model for that, at most; 0 where none has to be."""
    return max((mix.rows for mix, _ in work.mixes.values() if by_loss(source, mix)), default=0)


def followed_back(walk: Walk, place: Path) -> float:
    """Leave in `place` what `direction` reads, unless it is there; the seconds that it took."""

    def keep(block: Block, found: Tensor) -> tuple[dict[str, str], list[str]]:
        write_atomic(_file(place, block), partial(save_file, {"direction": found.to(torch.float32).contiguous()}))
        return {}, []

    def follow(rows: Rows) -> Iterator[tuple[Block, Tensor]]:
        return directions(walk.source, rows, walk.setting)

    rows = rows_followed(walk.source, walk.work)
    return float(followed(walk, rows, place / "done.json", "blocks followed back", follow, keep)["seconds"])


def direction(place: Path, block: Block) -> Tensor:
    """[rows, *length, width] the direction to which predictions are sensitive where rows leave this block (`slopes.directions`)."""
    return load_file(_file(place, block))["direction"]


def _file(place: Path, block: Block) -> Path:
    return place / f"{block.path}.safetensors"
