"""Safetensors files made of pieces: byte ranges of other files, copied through a small buffer, or tensors made one at a time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.base.store import file_digest, write_atomic, write_json
from thrifty.core.stored_types import STORED_TYPES

BUFFER = 1 << 24
HASHERS = 2
"""Tensors that are read back at once, each through a buffer of its own."""
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

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a buffer at a time."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.nbytes
            while left:
                chunk = file.read(min(left, BUFFER))
                if not chunk:
                    raise RunError(f"{self.file} ends before the end of {self.key}; it changed while it was read")
                left -= len(chunk)
                yield chunk

    def read(self) -> Tensor:
        """The tensor."""
        content = torch.empty(self.nbytes, dtype=torch.uint8)
        view, place = memoryview(content.numpy()), 0
        for chunk in self.chunks():
            view[place : place + len(chunk)] = chunk
            place += len(chunk)
        return content.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Made:
    """One tensor that is computed when it is written; make: gives it, of this type and shape."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * self.dtype.itemsize

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes, all at once."""
        yield memoryview(self.make().contiguous().reshape(-1).view(torch.uint8).numpy())


def pieces_of(path: Path) -> list[Piece]:
    """The tensors of a safetensors file, in the order of their bytes. Raises ValueError for a file that is none."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > path.stat().st_size:
            raise ValueError(f"{path} has no header")
        try:
            header = json.loads(file.read(length))
            entries = [(key, *_entry(entry)) for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} has a broken header") from None
        if any(8 + length + stop > path.stat().st_size for *_, stop in entries):
            raise ValueError(f"{path} ends before its header says it does")
    return [
        Piece(key, dtype, shape, path, 8 + length + start, stop - start)
        for key, dtype, shape, start, stop in sorted(entries, key=lambda entry: entry[3:])
    ]


def _entry(entry: dict[str, Any]) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """(type, shape, first byte, byte after the last one)."""
    dtype, shape = STORED_TYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if start < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return dtype, shape, start, stop


def stored_in(folder: Path) -> dict[str, Piece]:
    """The tensors of all safetensors files of a folder, by key. Raises InputError for a file that cannot be read."""
    try:
        return {piece.key: piece for path in sorted(folder.glob("*.safetensors")) for piece in pieces_of(path)}
    except ValueError as error:
        raise InputError(f"{error}; copy or download it again.") from None
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from None


def write_shards(folder: Path, pieces: Sequence[Piece | Made], max_bytes: int = LARGEST, *, stem: str = "model") -> dict[str, str]:
    """Write `model.safetensors`, or numbered shards with an index where that would be larger than `max_bytes`.

    stem: what files of weights are called. A tensor that is larger by itself gets a shard of its own. Returns the sha256 of each tensor's
    type, shape and bytes by key. Raises RunError when a source ends early or the disk is full.
    """
    shards = _split(pieces, max_bytes)
    names = [_name(stem, index, len(shards)) for index in range(len(shards))]
    digests: dict[str, str] = {}
    with events.task("writing", sum(piece.nbytes for piece in pieces), "bytes") as advance:
        done = 0
        for name, shard in zip(names, shards, strict=True):
            write_atomic(folder / name, lambda temporary, shard=shard: digests.update(_write(temporary, shard)))
            done += sum(piece.nbytes for piece in shard)
            advance(done, name)
    if len(shards) > 1:
        weight_map = {piece.key: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        total = sum(piece.nbytes for piece in pieces)
        write_json(
            folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        )
    return digests


def check_shards(folder: Path, digests: dict[str, str]) -> dict[str, str]:
    """Read every tensor back and compare; returns the sha256 of each file by name. Raises RunError naming a tensor that differs."""
    found: dict[str, str] = {}
    files: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(HASHERS) as pool:
        for path in sorted(folder.glob("*.safetensors")):
            try:
                pieces = pieces_of(path)
            except ValueError:
                raise RunError(f"{path} reads back without the header that was written to it; is the disk sound?") from None
            files[path.name] = pool.submit(file_digest, path)
            found |= zip((piece.key for piece in pieces), pool.map(_digest, pieces), strict=True)
    for key, digest in digests.items():
        if found.get(key) != digest:
            raise RunError(f"{key} reads back otherwise than it was written to {folder}; is the disk sound?")
    return {name: digest.result() for name, digest in files.items()}


def _digest(piece: Piece) -> str:
    """The sha256 of a tensor as it lies there, as `write_shards` returns it."""
    hasher = _hasher(piece)
    for chunk in piece.chunks():
        hasher.update(chunk)
    return hasher.hexdigest()


def _split(pieces: Sequence[Piece | Made], max_bytes: int) -> list[list[Piece | Made]]:
    shards: list[list[Piece | Made]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.nbytes
    # Wide types first: every tensor then starts at a multiple of its own width.
    return [sorted(shard, key=lambda piece: -piece.dtype.itemsize) for shard in shards]


def _name(stem: str, index: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{index + 1:05d}-of-{count:05d}.safetensors"


def _write(path: Path, pieces: Sequence[Piece | Made]) -> dict[str, str]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in pieces:
        if piece.nbytes != math.prod(piece.shape) * piece.dtype.itemsize:
            raise RunError(f"{piece.key} has {piece.nbytes} bytes, which is not what its shape needs")
        header[piece.key] = {"dtype": _name_of(piece.dtype), "shape": list(piece.shape), "data_offsets": [place, place + piece.nbytes]}
        place += piece.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digests = {}
    with path.open("wb") as out, ThreadPoolExecutor(1) as aside:
        out.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            hasher = _hasher(piece)
            for chunk in piece.chunks():
                hashed = aside.submit(hasher.update, chunk)  # while it is written
                out.write(chunk)
                hashed.result()
            digests[piece.key] = hasher.hexdigest()
    return digests


def _hasher(piece: Piece | Made) -> hashlib._Hash:
    """A hash that has seen the type and the shape."""
    return hashlib.sha256(f"{_name_of(piece.dtype)} {list(piece.shape)} ".encode())


def _name_of(dtype: torch.dtype) -> str:
    return next(name for name, other in STORED_TYPES.items() if other == dtype)
