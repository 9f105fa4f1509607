"""Safetensors files made of pieces of other files: byte ranges are copied through a small buffer, no tensor is ever in memory."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import _TYPES as NAMES

from thrifty.base import events
from thrifty.base.errors import RunError
from thrifty.base.store import write_atomic, write_json

BUFFER = 1 << 24
INDEX = "model.safetensors.index.json"
LARGEST = 5_000_000_000


@dataclass(frozen=True)
class Piece:
    """One tensor: its bytes are `start .. start + nbytes` of a file."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


def pieces_of(path: Path) -> list[Piece]:
    """The tensors of a safetensors file, in the order of their bytes."""
    types = {name: dtype for name, dtype in NAMES.items()}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = []
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        found.append(Piece(key, types[entry["dtype"]], tuple(entry["shape"]), path, 8 + length + start, stop - start))
    return found


def write_shards(folder: Path, pieces: Sequence[Piece], max_bytes: int = LARGEST) -> dict[str, str]:
    """Write `model.safetensors`, or numbered shards with an index where that would be larger than `max_bytes`.

    Returns the sha256 of each tensor's bytes by key. Raises RunError when a source ends early or the disk is full.
    """
    shards = _split(pieces, max_bytes)
    names = [_name(index, len(shards)) for index in range(len(shards))]
    digests: dict[str, str] = {}
    with events.task("writing", sum(piece.nbytes for piece in pieces)) as advance:
        done = 0
        for name, shard in zip(names, shards, strict=True):
            write_atomic(folder / name, lambda temporary, shard=shard: digests.update(_write(temporary, shard)))
            done += sum(piece.nbytes for piece in shard)
            advance(done, name)
    if len(shards) > 1:
        weight_map = {piece.key: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        total = sum(piece.nbytes for piece in pieces)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return digests


def check_shards(folder: Path, digests: dict[str, str]) -> None:
    """Read every tensor back and compare; raises RunError naming one that is missing or differs."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            for piece in pieces_of(path):
                hasher = hashlib.sha256()
                for chunk in _chunks(file, piece):
                    hasher.update(chunk)
                found[piece.key] = hasher.hexdigest()
    for key, digest in digests.items():
        if found.get(key) != digest:
            raise RunError(f"{key} reads back otherwise than it was written to {folder}; is the disk sound?")


def _split(pieces: Sequence[Piece], max_bytes: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.nbytes
    # Wide types first: every tensor then starts at a multiple of its own width.
    return [sorted(shard, key=lambda piece: -piece.dtype.itemsize) for shard in shards]


def _name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _write(path: Path, pieces: Sequence[Piece]) -> dict[str, str]:
    names = {dtype: name for name, dtype in NAMES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in pieces:
        if piece.nbytes != math.prod(piece.shape) * piece.dtype.itemsize:
            raise RunError(f"{piece.file}: {piece.key} has {piece.nbytes} bytes, which is not what its shape needs")
        header[piece.key] = {"dtype": names[piece.dtype], "shape": list(piece.shape), "data_offsets": [place, place + piece.nbytes]}
        place += piece.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digests = {}
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            hasher = hashlib.sha256()
            with piece.file.open("rb") as source:
                for chunk in _chunks(source, piece):
                    hasher.update(chunk)
                    out.write(chunk)
            digests[piece.key] = hasher.hexdigest()
    return digests


def _chunks(file: BinaryIO, piece: Piece) -> Iterator[bytes]:
    file.seek(piece.start)
    left = piece.nbytes
    while left:
        chunk = file.read(min(left, BUFFER))
        if not chunk:
            raise RunError(f"{piece.file} ends before the end of {piece.key}; it changed while it was read")
        left -= len(chunk)
        yield chunk
