"""A finished block as a file: matrices as codes where the format has them, everything else in the model's type; read back before it
counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.base.store import write_unsettled
from thrifty.models import Source
from thrifty.pipeline.view import BlockView


def write_block(path: Path, source: Source, view: BlockView) -> dict[str, dict[str, Any]]:
    """Write every tensor of the block as it will stand in the result; returns what is needed to read each packed linear, by path.

    Raises RunError when the file, read as its readers do, differs from the block's matrices anywhere.
    """
    tensors, packed = _packed(view)
    dense = _dense(source, view)
    tensors |= {key: values.contiguous() for key, values in dense.items()}
    write_unsettled(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    _read_back(path, view, packed)
    check_written(path, dense)
    return packed


def _packed(view: BlockView) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    tensors: dict[str, Tensor] = {}
    forms: dict[str, dict[str, Any]] = {}
    for path, encoded in sorted(view.packed.items()):
        parts, forms[path] = view.packing.write(view.linears[path], encoded, view.reading(path))
        tensors |= parts
    return tensors, forms


def _dense(source: Source, view: BlockView) -> dict[str, Tensor]:
    """Everything that is not stored as codes, in the type it has in the original."""
    codes = {view.linears[path].source for path in view.packed}
    changed = view.replacements()
    found = {}
    for key in source.block_keys(view.block):
        if key not in codes:
            found[key] = changed[key].to(source.tensors[key].dtype) if key in changed else source.read(key)
    return found


def _read_back(path: Path, view: BlockView, packed: dict[str, dict[str, Any]]) -> None:
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        for linear, form in packed.items():
            found = view.packing.read_back(view.linears[linear], form, keys, file.get_tensor)
            if not torch.equal(found, view.weights[linear].to(torch.float32)):
                raise RunError(f"{linear} reads back otherwise than it was written to {path}; this is a defect, please report it")


def check_written(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise RunError when a file does not hold these tensors, byte for byte."""
    with safe_open(path, "pt") as file:
        for key, values in tensors.items():
            if not torch.equal(_bits(file.get_tensor(key)), _bits(values.contiguous())):
                raise RunError(f"{key} reads back otherwise than it was written to {path}; is the disk sound?")


def _bits(values: Tensor) -> Tensor:
    """A tensor's bytes as the widest whole numbers they fill, which compare the fastest; NaN is equal to itself there."""
    flat = values.reshape(-1).view(torch.uint8)
    return flat if flat.numel() % 8 or flat.storage_offset() % 8 else flat.view(torch.int64)
