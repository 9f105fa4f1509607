"""One block of a tiny model, set up as the walk sets it up, with the rows that reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.models import open_model, run_block
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.packing import packing
from thrifty.pipeline.steps import Work
from thrifty.pipeline.view import BlockView
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve


def block_run(
    folder: Path, recipe: Any, inputs: dict[str, Tensor], index: int = 0, order: Any = "stage", batch: int = 2
) -> tuple[BlockRun, Tensor]:
    """(block number `index` about to be compressed, the rows that the original blocks before it put out)."""
    source = open_model(folder)
    work = Work.of(resolve(complete(parse_recipe(recipe)), source.anatomy))
    shell = source.shell(torch.float32)
    calls, hidden = shell.calls(inputs, {}), shell.enter(inputs, source.anatomy.chains[0], {})
    *before, block = source.anatomy.blocks[: index + 1]
    for earlier in before:
        hidden = run_block(source.block(earlier, torch.float32), hidden, calls[earlier.path])
    view = BlockView(source, block, packing(source, work))
    return BlockRun(view, calls[block.path], work, torch.float32, batch, order, torch.device("cpu"), seed=0), hidden


def inputs_of(run: BlockRun, rows: Tensor) -> dict[str, Tensor]:
    """What each linear of the block, as its module stands, reads of the rows: [tokens, in]; linears that no token reached are left out."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        return lambda _, arguments: seen.__setitem__(path, arguments[0].reshape(-1, arguments[0].shape[-1]))

    handles = [module.register_forward_pre_hook(keep(path)) for path, module in run.linears.items()]
    run_block(run.module, rows, run.call)
    for handle in handles:
        handle.remove()
    return seen
