"""A result in our own container, codes of compressed-tensors in no more bits than they need, values without zeros."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded
from thrifty.export.compressed import PARTS, check_format, check_parts, packed_stems, read_packed
from thrifty.export.container import METHOD, Container, container_config, layout_of
from thrifty.export.container.folder import Matrix
from thrifty.export.container.layout import name_of_part
from thrifty.export.dense import write_folder
from thrifty.export.shards import Made, Piece, stored_in

VALUES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of sparse values."""


@dataclass(frozen=True)
class Held:
    """A matrix as it goes into the container. nbytes: what its parts take; load: reads its codes."""

    matrix: Matrix
    parts: tuple[Made, ...]
    load: Callable[[], Encoded]

    @property
    def nbytes(self) -> int:
        """Bytes of its parts."""
        return sum(part.nbytes for part in self.parts)


def write(folder: Path, out: Path) -> dict[str, Any]:
    """Write the folder `out`, one matrix in memory at a time, and read it back; returns {bytes, tensors, bits_per_weight}.

    Integers and small floats of compressed-tensors come over as they are, and matrices with so many zeros that it is worth it.
    Raises InputError where there is neither, RunError when a matrix reads back otherwise. A folder appears whole or not at all.
    """
    config = json.loads((folder / "config.json").read_text())
    quantized, stored = config.pop("quantization_config", None), stored_in(folder)
    if quantized is not None and quantized.get("quant_method") == METHOD:
        raise InputError(f"{folder} is in the container already")
    coded = {} if quantized is None else _coded(folder, quantized, stored)
    parts = {f"{stem}.{part}" for stem in packed_stems(stored) for part in PARTS} if coded else set()
    left = {key: piece for key, piece in stored.items() if key not in parts}
    held = {f"{stem}.weight": _hold(f"{stem}.weight", load) for stem, load in coded.items()} | _sparse(folder, left)
    if not held:
        raise InputError(f"{folder} holds neither codes nor matrices with zeros, so the container would not make it smaller")
    pieces = [*(piece for key, piece in left.items() if key not in held), *(part for one in held.values() for part in one.parts)]
    own = container_config({key: one.matrix for key, one in held.items()}, {})
    size = write_folder(folder, out, pieces, {**config, "quantization_config": own}, partial(_read_back, own, held))
    weights = sum(math.prod(one.matrix.shape) for one in held.values())
    return {"bytes": size, "tensors": len(pieces), "bits_per_weight": 8 * sum(one.nbytes for one in held.values()) / weights}


def _coded(folder: Path, quantized: Mapping[str, Any], stored: Mapping[str, Piece]) -> dict[str, Callable[[], Encoded]]:
    """How the codes of each packed matrix are read, by stem."""
    check_parts(stored, folder, check_format(dict(quantized), folder))
    return {stem: partial(_narrow, lambda part: stored[part].read(), stem) for stem in packed_stems(stored)}


def _narrow(read: Callable[[str], Tensor], stem: str) -> Encoded:
    """The codes of a packed matrix with as many levels as occur, not as many as their places hold."""
    encoded = read_packed(read, stem)
    if encoded.layout != "int":
        return encoded
    codes, zero_point = encoded.tensors["codes"], encoded.tensors.get("zero_point")
    every = [codes] if zero_point is None else [codes, zero_point]
    low, high = min(int(part.min()) for part in every), max(int(part.max()) for part in every)
    odd = zero_point is None and bool((codes % 2 != 0).all())
    levels = max(-low, high) + 1 if odd else max(-2 * low, 2 * high + 1, 2)
    return replace(encoded, bits=math.log2(levels))


def _sparse(folder: Path, stored: Mapping[str, Piece]) -> dict[str, Held]:
    """Matrices of the result's layers that are smaller without their zeros."""
    try:
        layers = [layer["name"] for layer in json.loads((folder / "certificate.json").read_text())["layers"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    found = {}
    for key in (f"{layer}.weight" for layer in layers):
        piece = stored.get(key)
        if piece is not None and len(piece.shape) == 2 and piece.dtype in VALUES:
            one = _hold(key, partial(_values, piece))
            if one.nbytes < piece.nbytes:
                found[key] = one
    return found


def _values(piece: Piece) -> Encoded:
    values = piece.read()
    return Encoded("dense", {"values": values}, (values.shape[0], values.shape[1]), 8.0 * values.itemsize)


def _hold(key: str, load: Callable[[], Encoded]) -> Held:
    encoded = load()
    layout = layout_of(encoded, sparse=encoded.layout == "dense")

    def part_of(name: str) -> Tensor:
        return layout.encode(load())[name]

    made = [
        Made(name_of_part(key, name), tensor.dtype, tuple(tensor.shape), partial(part_of, name))
        for name, tensor in layout.encode(encoded).items()
    ]
    return Held(Matrix(layout, encoded.shape), tuple(made), load)


def _read_back(config: Mapping[str, Any], held: Mapping[str, Held], folder: Path) -> None:
    """Raise RunError unless every matrix, read as a container, is what it was."""
    container = Container(folder, config, stored_in(folder))
    for key, one in held.items():
        if not torch.equal(container.read(key), one.load().decode()):
            raise RunError(f"{key} reads back from the container otherwise than it was; this is a defect, please report it")
