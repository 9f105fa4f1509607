"""A tiny model's first block as a method sees it, with what some random rows say of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tiny import inputs
from thrifty.base.anatomy import UnitKind
from thrifty.core.moments import Moments
from thrifty.models import Source, linear_modules, run_block
from thrifty.models.units import units_of
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.reshape import CutView
from thrifty.pipeline.watching import watching
from thrifty.structure.base import Seen


class Walked:
    """What a view takes from a walk."""

    def __init__(self, source: Source, biases: dict[str, str], kinds: tuple[UnitKind, ...]) -> None:
        block = source.anatomy.blocks[0]
        self.source, self.setting = source, Setting()
        units = tuple(units for units in units_of(source, block).units if units.kind in kinds)
        resized = type("Resized", (), {"biases": biases})
        self.shaping: Any = type("Shaping", (), {"units": {block.path: units}, "resized": resized})


def view_of(
    source: Source, name: str, *kinds: UnitKind, biases: dict[str, str] | None = None, seed: int = 0
) -> tuple[CutView, Seen, dict[str, Tensor]]:
    """(the first block, what was seen of it, the inputs of each stage [tokens, width] by the name of the space)."""
    block = source.anatomy.blocks[0]
    rows = inputs(name, rows=4, length=12, seed=seed)
    shell = source.shell(torch.float32)
    call = shell.calls(rows, {})[block.path]
    view = CutView(Walked(source, biases or {}, kinds), block, call)
    hidden = shell.enter(rows, block.chain, {})
    read: dict[str, Tensor] = {}

    def keep(stage: Any, values: Tensor) -> None:
        read[stage.reads.name] = values.detach().reshape(-1, values.shape[-1])

    with watching(block, linear_modules(view.module, block), view.module, keep, lambda space, values: None):
        run_block(view.module, hidden, call)
    return view, Seen(hidden, {key: Moments.of(values) for key, values in read.items()}), read
