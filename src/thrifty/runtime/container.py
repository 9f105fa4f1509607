"""A result folder in our container, opened as if its matrices were plain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.reading import AS_THEY_ARE
from thrifty.export.container import LAYOUTS, Container
from thrifty.export.shards import Piece
from thrifty.models import Source
from thrifty.models.disk import TensorInfo
from thrifty.models.folder import scan_folder
from thrifty.models.skeleton import build_skeleton
from thrifty.runtime.linear import FINE_ROLES, PackedLinear

MOST_BITS = 8
"""Wider codes are decoded while loading."""


def open_container(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Container:
    """The container whose files hold these tensors."""
    pieces = {key: Piece(key, info.dtype, info.shape, info.file, info.start, info.bytes) for key, info in tensors.items()}
    return Container(folder, config, pieces)


class ContainerFolder:
    """`source` decodes what is read; `layers` are those that stay packed.

    settings: `quantization_config`; config: that of the model. Raises InputError for missing or broken files.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], config: Any, remote_code: str | None = None) -> None:
        tensors, _ = scan_folder(folder, allow_pickle=False)
        self.container = open_container(folder, settings, tensors)
        dtype = config.dtype or torch.bfloat16
        file = next(iter(tensors.values())).file
        outlines = {key: TensorInfo(file, dtype, shape, 0, 0) for key, shape in self.container.shapes.items()}
        plain = {key: tensors[key] for key in self.container.plain}
        self.source = Source(folder, config, {**plain, **outlines}, _Decoded(self.container), remote_code)
        self.stored = tensors
        self._check_readings()

    def _check_readings(self) -> None:
        """Refuse matrices that do something to their inputs and are not kept packed: nobody would do it."""
        plain = self.source.plain_linears
        linears = [linear for linear in self.source.anatomy.linears if linear.expert is None and linear.storage == "linear"]
        packed = {linear.source for linear in linears if linear.path in plain}
        for key in self.container.readings:
            if key not in packed or self.container.matrices[key].layout.levels > 1 << MOST_BITS:  # type: ignore[attr-defined]
                raise InputError(f"{self.container.place}: {key} changes its inputs and is no layer whose codes stay packed")

    def layers(self, dtype: torch.dtype, within: str = "", beside: tuple[str, ...] = ()) -> dict[str, PackedLinear]:
        """The packed layers by module path, their biases still to be filled: those below `within`, but for those below `beside`."""
        found: dict[str, PackedLinear] = {}
        roles = {linear.path: linear.role for linear in self.source.anatomy.linears}
        for path, module in linears_of(self.source, within, beside):
            matrix = self.container.matrices.get(self.source.disk_name(f"{path}.weight") or "")
            if matrix is not None and not matrix.layout.transposed:
                key = str(self.source.disk_name(f"{path}.weight"))
                encoded, reading = packable(self.container.encoded(key)), self.container.readings.get(key, AS_THEY_ARE)
                if encoded is not None:
                    fine = roles.get(path) in FINE_ROLES
                    found[path] = PackedLinear(encoded, bias=module.bias is not None, dtype=dtype, fine=fine, reading=reading)
        return found


def linears_of(source: Source, within: str, beside: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """The plain linear layers of a model below the module `within`, but for those below the modules `beside`, without weights."""
    inside = f"{within}." if within else ""
    for path, module in build_skeleton(source.config, remote_code=source.remote_code).named_modules():
        if type(module) is nn.Linear and path.startswith(inside) and not path.startswith(beside):
            yield path, module


def packable(encoded: Encoded) -> Encoded | None:
    """The codes as a packed layer takes them: integers in 4 or 8 bits, as the kernels have them, numbers in whole bits; None for others."""
    bits = math.ceil(encoded.bits)
    if encoded.layout not in LAYOUTS or bits > MOST_BITS:
        return None
    if encoded.layout != "numbers":
        return replace(encoded, bits=4.0 if bits <= 4 else 8.0)
    return replace(encoded, bits=float(bits))


class _Decoded(Mapping[str, Tensor]):
    """What is held as codes, by the key of the model's own tensor, decoded when read."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._container.shapes:
            raise KeyError(key)
        return self._container.read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._container.shapes)

    def __len__(self) -> int:
        return len(self._container.shapes)
