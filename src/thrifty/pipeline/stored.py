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
from thrifty.base.store import write_atomic
from thrifty.export.compressed import Scheme, library_decode, pack, scheme_of
from thrifty.models import Source
from thrifty.pipeline.view import BlockView


def write_block(path: Path, source: Source, view: BlockView) -> dict[str, dict[str, Any]]:
    """Write every tensor of the block as it will stand in the result; returns the scheme of each packed linear, by path.

    Raises RunError when the file, decoded with the format's own library, differs from the block's matrices anywhere.
    """
    tensors, packed = _packed(view)
    dense = _dense(source, view)
    tensors |= {key: values.contiguous() for key, values in dense.items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    _read_back(path, view, packed, dense)
    return {linear: scheme.to_json() for linear, scheme in packed.items()}


def stem_of(source_key: str) -> str:
    """The name that the parts of a packed matrix share on disk."""
    return source_key.removesuffix(".weight")


def _packed(view: BlockView) -> tuple[dict[str, Tensor], dict[str, Scheme]]:
    tensors: dict[str, Tensor] = {}
    schemes: dict[str, Scheme] = {}
    for path, encoded in sorted(view.packed.items()):
        linear = view.linears[path]
        tensors |= pack(stem_of(linear.source), encoded, view.packing.scale_types(linear))
        schemes[path] = scheme_of(encoded)
    return tensors, schemes


def _dense(source: Source, view: BlockView) -> dict[str, Tensor]:
    """Everything that is not stored as codes, in the type it has in the original."""
    codes = {view.linears[path].source for path in view.packed}
    changed = view.replacements()
    found = {}
    for key in source.block_keys(view.block):
        if key not in codes:
            found[key] = changed[key].to(source.tensors[key].dtype) if key in changed else source.read(key)
    return found


def _read_back(path: Path, view: BlockView, packed: dict[str, Scheme], dense: dict[str, Tensor]) -> None:
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        for linear, scheme in packed.items():
            stem = stem_of(view.linears[linear].source)
            parts = {key: file.get_tensor(key) for key in keys if key.startswith(f"{stem}.weight")}
            found = view.packing.read(view.linears[linear], library_decode(parts, stem, scheme))
            if not torch.equal(found, view.weights[linear].to(torch.float32)):
                raise RunError(f"{linear} reads back otherwise than it was written to {path}; this is a defect, please report it")
        for key, values in dense.items():
            if not torch.equal(file.get_tensor(key).view(torch.uint8), values.contiguous().view(torch.uint8)):
                raise RunError(f"{key} reads back otherwise than it was written to {path}; is the disk sound?")
