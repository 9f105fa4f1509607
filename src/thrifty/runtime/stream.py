"""Blocks whose weights stay on disk: read before a block computes, forgotten after it, the next one read meanwhile.

Where a weight lies in the model's own files as the model computes with it, it is read from there. Everything else (codes in a kernel's
layout, weights of another type, experts that are joined) is written once, while the model is loaded, into a file without a name that is
gone with the process. There are two places in memory, each as large as the largest block. They are filled by plain reads: of a map, pages
count as memory, too, and where a matrix does not begin at a multiple of 16 bytes there, torch's products differ in the last bit.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from thrifty.base.errors import RunError
from thrifty.models.disk import TensorInfo

_ALIGN = 64


@dataclass(frozen=True)
class _Weight:
    """One tensor of a block: which module and name, which file and where in it, and where it goes in memory."""

    module: str
    leaf: str
    file: int
    start: int
    bytes: int
    place: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class BlockStore:
    """The weights of blocks on disk, in the order in which they compute. Copies of a model share it.

    Models run one pass at a time; no gradient goes through these blocks, whose weights are gone when it would be needed.
    """

    def __init__(self) -> None:
        self._files: dict[Path, Any] = {}
        self._scratch = tempfile.TemporaryFile(prefix="thrifty-")  # noqa: SIM115
        self._written = 0
        self._blocks: list[list[_Weight]] = []
        self._places: list[Tensor] = []
        self._ahead = ThreadPoolExecutor(1, "thrifty-blocks")
        self._coming: tuple[int, Future[Tensor]] | None = None
        self._gradients = False

    def add(self, block: nn.Module, where: Mapping[str, TensorInfo]) -> None:
        """Take the matrices of a block out of memory; vectors stay. The block must be the one that computes after those added before.

        where: name inside the block -> where that parameter lies in a file, as the block computes with it; it may be hollow. All others are
        written.
        """
        number, place = len(self._blocks), 0
        weights = []
        for module_path, module in block.named_modules():
            for table in (module._parameters, module._buffers):
                for leaf, tensor in table.items():
                    if tensor is None or tensor.ndim < 2:
                        continue
                    name = f"{module_path}.{leaf}".removeprefix(".")
                    file, start = self._found(where[name]) if name in where else self._write(tensor.detach())
                    count = tensor.numel() * tensor.dtype.itemsize
                    weights.append(_Weight(module_path, leaf, file, start, count, place, tensor.dtype, tuple(tensor.shape)))
                    place += -(-count // _ALIGN) * _ALIGN
                    empty = torch.empty(0, dtype=tensor.dtype)
                    table[leaf] = nn.Parameter(empty, requires_grad=False) if table is module._parameters else empty
        self._blocks.append(weights)
        block.register_forward_pre_hook(lambda module, _: self._enter(number, module))
        block.register_forward_hook(lambda module, *_: self._leave(number, module), always_call=True)

    @property
    def written_bytes(self) -> int:
        """Bytes in the file without a name."""
        return self._written

    def _found(self, info: TensorInfo) -> tuple[int, int]:
        if info.file not in self._files:
            self._files[info.file] = info.file.open("rb", buffering=0)
        return self._files[info.file].fileno(), info.start

    def _write(self, tensor: Tensor) -> tuple[int, int]:
        content = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        start, written = self._written, 0
        try:
            while written < len(content):
                written += os.pwrite(self._scratch.fileno(), content[written:], start + written)
        except OSError as error:
            place = tempfile.gettempdir()
            raise RunError(f"blocks cannot be written to {place} ({error.strerror}); free some space, or set TMPDIR") from error
        self._written += written
        return self._scratch.fileno(), start

    # -- while the model runs ------------------------------------------------------------------------------------------

    def _enter(self, number: int, block: nn.Module) -> None:
        self._gradients = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        place = self._take(number)
        following = (number + 1) % len(self._blocks)
        if following != number:
            self._coming = (following, self._ahead.submit(self._read, following, self._other(place)))
        for weight in self._blocks[number]:
            part = place[weight.place : weight.place + weight.bytes].view(weight.dtype).view(weight.shape)
            _put(block.get_submodule(weight.module), weight.leaf, part)

    def _leave(self, number: int, block: nn.Module) -> None:
        for weight in self._blocks[number]:
            _put(block.get_submodule(weight.module), weight.leaf, torch.empty(0, dtype=weight.dtype))
        torch.set_grad_enabled(self._gradients)

    def _take(self, number: int) -> Tensor:
        """The place where the block is: read ahead, or now."""
        coming, self._coming = self._coming, None
        if coming is not None:
            place = coming[1].result()
            return place if coming[0] == number else self._read(number, place)
        if not self._places:
            size = max(weights[-1].place + weights[-1].bytes for weights in self._blocks if weights)
            self._places = [torch.empty(size, dtype=torch.uint8) for _ in range(min(2, len(self._blocks)))]
        return self._read(number, self._places[0])

    def _other(self, place: Tensor) -> Tensor:
        return self._places[1] if place is self._places[0] else self._places[0]

    def _read(self, number: int, place: Tensor) -> Tensor:
        memory = memoryview(place.numpy())
        for weight in self._blocks[number]:
            filled = 0
            while filled < weight.bytes:
                view = memory[weight.place + filled : weight.place + weight.bytes]
                count = os.preadv(weight.file, [view], weight.start + filled)
                if not count:
                    raise RunError(f"a weight file ends within {weight.module}.{weight.leaf}; it changed since the model was loaded")
                filled += count
        return place

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _put(module: nn.Module, leaf: str, values: Tensor) -> None:
    if leaf in module._parameters:
        module._parameters[leaf].data = values  # type: ignore[union-attr]
    else:
        module._buffers[leaf] = values
