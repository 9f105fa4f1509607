"""The walk in its plainest form: every block of every chain, one at a time, between entering and finishing."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

from thrifty.models import Source, run_block
from thrifty.models.shell import main_output


def walk(source: Source, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """What the model puts out when its blocks are opened one after the other."""
    shell = source.shell(dtype)
    done: dict[str, Tensor] = {}
    for chain in source.anatomy.chains:
        hidden = shell.enter(inputs, chain, done)
        calls = shell.calls(inputs, done)
        for block in source.anatomy.blocks:
            if block.chain == chain:
                hidden = run_block(source.block(block, dtype), hidden, calls[block.path])
        done[chain] = hidden
    return shell.finish(inputs, done)


def reference(folder: Path, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """What transformers' own loading and forward pass put out."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return main_output(model(**inputs))
