"""From finished blocks to a model folder: shards, config and side files, byte ranges copied without holding a tensor in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from thrifty.base.anatomy import Linear
from thrifty.base.store import write_atomic, writing
from thrifty.export.shards import Piece, check_shards, pieces_of, write_shards
from thrifty.export.side import copy_side_files, write_config
from thrifty.export.uneven.folder import write_beside
from thrifty.export.uneven.outline import KEY
from thrifty.measure.certificate import Bytes
from thrifty.measure.size import bits_per_weight, bytes_by_matrix, tensor_bytes, weight_bytes
from thrifty.models import Source
from thrifty.pipeline.folder import BlockRecord, RunFolder
from thrifty.pipeline.packing import Packing


def assemble(
    source: Source, records: list[BlockRecord], packing: Packing, folder: RunFolder, values: Mapping[str, Any] | None = None
) -> tuple[Path, dict[str, str]]:
    """Write the result into the run folder; returns where, and the sha256 of its files of weights by name. Every tensor is read back and
    compared before this returns.

    values: what its config.json says, where that is not what the original's does. Shards hold the tensors outside the blocks first, then
    the blocks in order.
    """
    staging = folder.path / "result"
    with writing(staging):
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    pieces = [*_shell_pieces(source, folder), *(piece for record in records for piece in pieces_of(record.tensors))]
    digests = check_shards(staging, write_shards(staging, pieces, stem=source.stem))
    forms = {path: form for record in records for path, form in record.packed.items()}
    config = packing.config(source, forms) if forms else None
    original = json.loads((source.folder / "config.json").read_text())
    write_config(staging, {**original, **source.config_changes} if values is None else values, config)
    copy_side_files(source.side_files(), source.folder, staging)
    if values is not None and KEY in values:
        write_beside(staging, values)
    return staging, digests


def _shell_pieces(source: Source, folder: RunFolder) -> list[Piece]:
    """The tensors outside the blocks, copied from where they lie, if they do."""
    keys = source.shell_keys()
    if source.lies_in_files:
        infos = ((key, source.tensors[key]) for key in keys)
        return [Piece(key, info.dtype, info.shape, info.file, info.start, info.bytes) for key, info in infos]
    path = folder.path / "shell.safetensors"
    tensors = {key: source.read(key).contiguous().clone() for key in keys}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    return pieces_of(path)


def sizes(source: Source, records: list[BlockRecord], folder: Path, original: Source) -> tuple[Bytes, float | None]:
    """(bytes of the weight files of the original and of the result, stored bits of a weight in scope); simulated matrices are out of it."""
    stored = tensor_bytes(folder)
    scope: dict[str, Linear] = {linear.path: linear for linear in source.anatomy.linears}
    layers = [layer for record in records for layer in record.layers if not layer.simulated]
    keys = {scope[layer.name].source for layer in layers}
    bytes_ = Bytes(before=_before(original), after=weight_bytes(folder))
    if not keys:
        return bytes_, None
    bits = bits_per_weight(bytes_by_matrix(stored, keys), {key: source.tensors[key].numel for key in keys})
    return bytes_, bits


def _before(source: Source) -> int:
    """Bytes of the original's weight files that hold tensors of the model."""
    return sum(file.stat().st_size for file in {info.file for info in source.tensors.values()})
