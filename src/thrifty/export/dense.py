"""A result without codes: every matrix decoded, rounded once to the type of the model, for runtimes that read no packed weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.base.store import write_bytes, write_json, writing
from thrifty.export.compressed import INTEGERS, PARTS, check_format, check_parts, packed_shape, packed_stems, read_packed
from thrifty.export.container import METHOD, Container
from thrifty.export.shards import INDEX, Made, Piece, check_shards, stored_in, write_shards
from thrifty.export.side import stem_of

OUTDATED = ("certificate.json", "report.html", "README.md")
"""Files of a result that say how large and how fast it is."""


def write(folder: Path, out: Path) -> dict[str, Any]:
    """Write the folder `out`, one matrix in memory at a time; returns {bytes, tensors, dtype}.

    What tells of the weights as they were stored (certificate, report, card) is left behind. Raises InputError for weights that are
    quantized in another format, RunError when a tensor reads back otherwise than it was decoded or the disk is full. A folder appears whole
    or not at all.
    """
    config = json.loads((folder / "config.json").read_text())
    quantized = config.pop("quantization_config", None)
    own = quantized is not None and quantized.get("quant_method") == METHOD
    form = INTEGERS if quantized is None or own else check_format(quantized, folder)
    dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    pieces = _contained(folder, dtype, quantized) if own else _pieces(folder, dtype, form)
    size = write_folder(folder, out, pieces, config)
    return {"bytes": size, "tensors": len(pieces), "dtype": str(dtype).removeprefix("torch.")}


def write_folder(
    folder: Path, out: Path, pieces: Sequence[Piece | Made], config: dict[str, Any], check: Callable[[Path], None] = lambda staging: None
) -> int:
    """Write the folder `out` with these tensors and this config and every other file of `folder`; returns the bytes of the weights.

    check: looks at what was written before it takes its place. What tells of the weights as they were stored is left behind.
    """
    stem = stem_of(config)
    left = {INDEX, f"{stem}.safetensors.index.json", "config.json", *(OUTDATED if (folder / OUTDATED[0]).exists() else ())}
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with writing(out):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            check_shards(staging, write_shards(staging, pieces, stem=stem))
            check(staging)
            write_json(staging / "config.json", config)
            for path in sorted(folder.rglob("*")):
                place = path.relative_to(folder)
                hidden = any(name.startswith(".") for name in place.parts[:-1])  # the working files of a run, a repository's own
                if path.is_file() and not hidden and path.suffix != ".safetensors" and str(place) not in left:
                    write_bytes(staging / place, path.read_bytes())
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sum(path.stat().st_size for path in out.glob("*.safetensors"))


def _contained(folder: Path, dtype: torch.dtype, config: dict[str, Any]) -> list[Piece | Made]:
    """The tensors to write of a folder in our container."""
    stored = stored_in(folder)
    container = Container(folder, config, stored)
    made = [Made(key, dtype, shape, lambda key=key: container.read(key).to(dtype)) for key, shape in container.shapes.items()]
    return [*(stored[key] for key in container.plain), *made]


def _pieces(folder: Path, dtype: torch.dtype, form: str) -> list[Piece | Made]:
    """The tensors to write, in the order that they have; the parts of a packed matrix may lie in several files."""
    stored = stored_in(folder)
    check_parts(stored, folder, form)
    stems = {f"{stem}.weight_scale": stem for stem in packed_stems(stored)}
    parts = {f"{stem}.{part}" for stem in stems.values() for part in PARTS}

    def read(key: str) -> Tensor:
        return stored[key].read()

    def decode(stem: str) -> Tensor:
        return read_packed(read, stem).decode().to(dtype)

    found: list[Piece | Made] = []
    for key, piece in stored.items():
        if key in stems:
            stem = stems[key]
            found.append(Made(f"{stem}.weight", dtype, packed_shape(read, stem), partial(decode, stem)))
        elif key not in parts:
            found.append(piece)
    return found
