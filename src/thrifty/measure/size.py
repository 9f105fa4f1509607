"""How large a checkpoint is: bytes of its weight files, and bits per weight of what was compressed.

    bits_per_weight = 8 x (stored bytes of the matrices in scope) / (number of their weights)

Those bytes are codes, scales, zero points, shapes and fixed grids of inputs.

The whole file stands beside it, since embeddings and norms outside the scope count for whoever downloads it.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from thrifty.base.errors import InputError

WEIGHT_FILES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_PARTS = (
    *("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale"),
    *("input_scale", "input_zero_point", "input_global_scale"),
)


def weight_bytes(folder: str | Path) -> int:
    """Bytes of the weight files in a model folder, sub-folders excluded.

    Raises InputError when the folder holds none.
    """
    sizes = [path.stat().st_size for path in sorted(Path(folder).iterdir()) if path.is_file() and path.suffix in WEIGHT_FILES]
    if not sizes:
        raise InputError(f"{folder} holds no weight file ({', '.join(WEIGHT_FILES)})")
    return sum(sizes)


def tensor_bytes(folder: str | Path) -> dict[str, int]:
    """Stored bytes of every tensor in the safetensors files of a folder, from their headers alone.

    Raises InputError for a file that is no safetensors file.
    """
    found: dict[str, int] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        found |= {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in _header(path).items()}
    return found


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    """The tensors listed in a safetensors file: 8 bytes with the length of a JSON text, then that text."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
    except (struct.error, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def matrix_bytes(tensors: Mapping[str, int], key: str) -> int:
    """Stored bytes of one matrix, packed or plain; `key` is the disk name of its weight (`model.layers.0.mlp.up_proj.weight`).

    tensors: bytes by disk name (`tensor_bytes`). Raises InputError when nothing is stored under the name.
    """
    stem = key.removesuffix(".weight")
    stored = sum(tensors.get(f"{stem}.{part}", 0) for part in _PARTS) if key.endswith(".weight") else 0
    stored = stored or tensors.get(key, 0)
    if not stored:
        raise InputError(f"the checkpoint stores no weight under {key!r}")
    return stored


def bytes_by_matrix(tensors: Mapping[str, int], keys: Collection[str]) -> dict[str, int]:
    """Stored bytes of each of several matrices, as in `matrix_bytes`; what has a name below its own (`..weight.scale`) is part of it."""
    below: Counter[str] = Counter()
    for name, size in tensors.items():
        owner = name
        while owner := owner.rpartition(".")[0]:
            if owner in keys:
                below[owner] += size
    return {key: below[key] + (0 if below[key] and key not in tensors else matrix_bytes(tensors, key)) for key in keys}


def bits_per_weight(stored: Mapping[str, int], weights: Mapping[str, int]) -> float:
    """Mean stored bits of a weight: bytes and number of weights by matrix, the same matrices in both.

    Raises InputError when the matrices differ or there is none.
    """
    if stored.keys() != weights.keys() or not weights:
        raise InputError("bits per weight needs the stored bytes and the number of weights of the same matrices, at least one")
    return 8 * sum(stored.values()) / sum(weights.values())
