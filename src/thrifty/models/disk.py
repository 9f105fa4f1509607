"""Safetensors files on disk: what they hold, and one tensor at a time out of them.

The header is eight bytes of length and a JSON table; bytes are then read straight into the tensor that is returned. The library's own
reader maps the whole file, which fails for a file larger than the memory, counts every touched page as resident, and needs a second copy
to let go of one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.base.errors import InputError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: file, data type, shape, and its bytes `start .. start + bytes` counted from the start of the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def of_shape(self, shape: tuple[int, ...]) -> TensorInfo:
        """A tensor that does not exist yet: of this type, in another shape."""
        return TensorInfo(self.file, self.dtype, shape, 0, math.prod(shape) * self.dtype.itemsize)


def scan(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by key; only its header is read.

    Raises InputError when the file is not safetensors, or ends before its header says it does.
    """
    try:
        header, begin = _read_header(file)
        size = file.stat().st_size
        tensors = {key: _entry(file, key, entry, begin) for key, entry in header.items() if key != "__metadata__"}
        end = max((info.start + info.bytes for info in tensors.values()), default=begin)
        if end > size:
            raise ValueError(f"it has {size:,} bytes where its header promises {end:,}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error}); download or copy it again.") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error}); check the file and its permissions.") from None
    return tensors


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """(the table, where the first tensor's bytes begin)."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LONGEST_HEADER:
            raise ValueError("it has no header")
        text = stream.read(length)
    if len(text) < length:
        raise ValueError("it ends within its header")
    try:
        header = json.loads(text)
    except (ValueError, UnicodeDecodeError):
        raise ValueError("its header is not JSON") from None
    return header, 8 + length


def _entry(file: Path, key: str, entry: dict[str, Any], begin: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {key} has the data type {entry['dtype']}, which is not read")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if start < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {key} of shape {list(shape)} lies in {stop - start} bytes")
    return TensorInfo(file, dtype, shape, begin + start, stop - start)


def read_tensor(key: str, info: TensorInfo) -> Tensor:
    """One tensor, on the CPU, in the type it has on disk.

    Raises InputError when the file no longer holds it.
    """
    tensor = torch.empty(info.bytes, dtype=torch.uint8)
    try:
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(info.start)
            view = memoryview(tensor.numpy())
            filled = 0
            while filled < info.bytes:
                count = stream.readinto(view[filled:])
                if not count:
                    raise InputError(f"{info.file} ends within tensor {key}; download or copy the file again.")
                filled += count
    except OSError as error:
        raise InputError(f"{info.file} cannot be read ({error.strerror or error}); check the file and its permissions.") from None
    return tensor.view(info.dtype).reshape(info.shape)
