"""A result without codes: every matrix decoded, rounded once to the type of the model, for runtimes that read no packed weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.base.store import write_json
from thrifty.export.compressed import PARTS, packed_stems, read_packed
from thrifty.export.shards import INDEX


def write(folder: Path, out: Path) -> dict[str, Any]:
    """Write the folder `out`, one shard in memory at a time; returns {bytes, tensors, dtype}.

    Raises RunError when a tensor reads back otherwise than it was decoded. A folder appears whole or not at all.
    """
    staging = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    places: dict[str, str] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors = _decoded(shard, dtype)
        save_file(tensors, staging / shard.name, metadata={"format": "pt"})
        _read_back(staging / shard.name, tensors)
        places |= dict.fromkeys(tensors, shard.name)
    if (folder / INDEX).exists():
        total = sum(path.stat().st_size for path in staging.glob("*.safetensors"))
        write_json(staging / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    write_json(staging / "config.json", config)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and not (staging / path.name).exists():
            shutil.copyfile(path, staging / path.name)
    staging.rename(out)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return {"bytes": size, "tensors": len(places), "dtype": str(dtype).removeprefix("torch.")}


def _decoded(shard: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    with safe_open(shard, "pt") as file:
        keys = set(file.keys())

        def read(key: str) -> Tensor:
            if key not in keys:
                raise KeyError(key)
            return file.get_tensor(key)

        stems = packed_stems(keys)
        parts = {f"{stem}.{part}" for stem in stems for part in PARTS}
        tensors = {key: read(key) for key in sorted(keys - parts)}
        return tensors | {f"{stem}.weight": read_packed(read, stem).decode().to(dtype) for stem in stems}


def _read_back(path: Path, tensors: dict[str, Tensor]) -> None:
    with safe_open(path, "pt") as file:
        for key, values in tensors.items():
            if not torch.equal(file.get_tensor(key), values):
                raise RunError(f"{key} reads back otherwise than it was written to {path}; is the disk sound?")
