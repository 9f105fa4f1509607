"""A tiny model with some units of each block cut, or switched off: what both put out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.base.anatomy import Block
from thrifty.base.records import Cut
from thrifty.core.cut import cut, staying, zeroed
from thrifty.models import Source, run_block
from thrifty.models.resize import Resized

Cuts = Mapping[str, Sequence[Cut]]


def tensors_of(source: Source, block: Block) -> dict[str, Tensor]:
    """Every tensor of a block by disk key."""
    return {key: source.read(key) for key in source.block_keys(block)}


def run_cut(source: Source, resized: Resized, cuts: Cuts, inputs: dict[str, Tensor]) -> Tensor:
    """What the smaller model puts out; cuts by the original's block path."""

    def module(block: Block) -> nn.Module:
        old = resized.blocks[block.path]
        small = {resized.key(source, block, key): tensor for key, tensor in cut(tensors_of(source, old), cuts[old.path]).items()}
        small |= {key: torch.zeros(shape) for key, shape in resized.added.items() if key not in small}
        return resized.source.block(block, torch.float32, replace=small)

    return _walk(resized.source, inputs, module)


def run_zeroed(source: Source, cuts: Cuts, inputs: dict[str, Tensor], skipped: Sequence[str] = ()) -> Tensor:
    """What the original puts out when nothing reads the removed units, and the blocks `skipped` do nothing."""
    unwanted: dict[int, Tensor] = {}

    def module(block: Block) -> nn.Module | None:
        if block.path in skipped:
            return None
        made = source.block(block, torch.float32, replace=zeroed(tensors_of(source, block), cuts[block.path]))
        for item in cuts[block.path]:
            if item.units.kind == "experts":
                router = made.get_submodule(item.units.space.consumers[0].removeprefix(block.path + "."))
                unwanted[id(router.weight)] = ~staying(item.units, item.keep)
        return made

    with _NeverChosen(unwanted):
        return _walk(source, inputs, module)


class _NeverChosen(TorchFunctionMode):
    """Gives some outputs of some matrices the value minus infinity: experts that no token can choose."""

    def __init__(self, unwanted: dict[int, Tensor]) -> None:
        super().__init__()
        self.unwanted = unwanted

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is nn.functional.linear and id(args[1]) in self.unwanted:
            return out.masked_fill(self.unwanted[id(args[1])], -torch.inf)
        return out


def _walk(source: Source, inputs: dict[str, Tensor], module) -> Tensor:
    shell = source.shell(torch.float32)
    done: dict[str, Tensor] = {}
    for chain in source.anatomy.chains:
        hidden = shell.enter(inputs, chain, done)
        calls = shell.calls(inputs, done)
        for block in source.anatomy.blocks:
            made = module(block) if block.chain == chain else None
            if made is not None:
                hidden = run_block(made, hidden, calls[block.path])
        done[chain] = hidden
    return shell.finish(inputs, done)
