"""What every layout of the container has in common: settings that stand in config.json, and parts, the tensors of one matrix.

A matrix with the disk key `K` is stored as the uint8 tensor `K`, one-dimensional, which holds its codes, and its other parts `K.scale`,
`K.mask` and so on. A reader that does not know the container finds `K` in another shape than the model's and stops.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded

MAIN = ""
"""The part that has the name of the matrix itself."""

WEIGHTS_PER_BYTE = 16
"""A matrix has at most so many weights for each stored byte: no layout takes less than half a bit a weight, and no header can ask for more
memory than that."""


class Stored(Protocol):
    """A tensor in a file: what its header says, and its content. `export.shards.Piece` is one."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def file(self) -> Path: ...

    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class Held:
    """A tensor in memory that is read like one in a file."""

    tensor: Tensor
    file: Path = Path("memory")

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self) -> Tensor:
        return self.tensor


def name_of_part(key: str, part: str) -> str:
    """The tensor that holds a part of the matrix `key`."""
    return f"{key}.{part}" if part else key


class Parts:
    """The stored parts of one matrix. Types and sizes are compared with the file's header before anything is read."""

    def __init__(self, key: str, stored: Mapping[str, Stored]) -> None:
        self.key = key
        self._stored = stored

    def fail(self, part: str, message: str) -> InputError:
        """The error for a part that is wrong, naming the file and the tensor."""
        name = name_of_part(self.key, part)
        found = self._stored.get(name) or self._stored.get(self.key)
        place = "the weights" if found is None else str(found.file)
        return InputError(f"{place}: tensor {name} {message}; copy or download the file again.")

    def count(self, part: str, dtype: torch.dtype) -> int:
        """How many values of this type a part has by its header."""
        found = self._stored.get(name_of_part(self.key, part))
        if found is None:
            raise self.fail(part, "is missing")
        if found.dtype != dtype or len(found.shape) != 1:
            raise self.fail(part, f"is {found.dtype} {list(found.shape)}, not one row of {dtype}")
        return found.shape[0]

    def take(self, part: str, dtype: torch.dtype, count: int) -> Tensor:
        """A part, [count] of this type. Raises InputError where the header says otherwise."""
        held = self.count(part, dtype)
        if held != count:
            raise self.fail(part, f"holds {held} values where its matrix needs {count}")
        return self._stored[name_of_part(self.key, part)].read()


class Layout(BaseModel, ABC):
    """How codes of one kind lie in parts; its fields are what a reader must know beforehand, as they stand in config.json.

    transposed: the model's own tensor is [in, out] (Conv1D).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: ClassVar[str]
    """That of `Encoded.layout`."""

    part_names: ClassVar[tuple[str, ...]]
    """The parts that a matrix may have."""

    transposed: bool = False

    @classmethod
    @abstractmethod
    def of(cls, encoded: Encoded, sparse: bool) -> Self:
        """The settings that hold these codes exactly. sparse: whether only what is not zero is stored, beside a mask."""

    @abstractmethod
    def encode(self, encoded: Encoded) -> dict[str, Tensor]:
        """The parts, each one-dimensional."""

    @abstractmethod
    def decode(self, parts: Parts, shape: tuple[int, int]) -> Encoded:
        """The codes, as they were encoded. Raises InputError for parts that cannot be right."""

    @classmethod
    @abstractmethod
    def estimate(cls, outline: Encoded, kept: float) -> int:
        """Bytes of a matrix that is known by its outline only (`Target.outline`). kept: share that may be other than zero, if masked."""

    def to_json(self) -> dict[str, Any]:
        """The settings, with the layout's name."""
        return {"layout": self.name, **self.model_dump(exclude_defaults=True)}


@cache
def layouts() -> dict[str, type[Layout]]:
    """Every layout by its name: the modules of this package are imported."""
    package = importlib.import_module("thrifty.export.container")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {layout.name: layout for layout in Layout.__subclasses__()}


def layout_of(encoded: Encoded, *, sparse: bool = False, transposed: bool = False) -> Layout:
    """The settings that hold these codes. Raises RunError for codes of a layout that the container does not have."""
    if encoded.layout not in layouts():
        raise RunError(f"the container has no layout for {encoded.layout!r}")
    return layouts()[encoded.layout].of(encoded, sparse).model_copy(update={"transposed": transposed})


def estimate(outline: Encoded, kept: float = 1.0) -> int:
    """Bytes of a matrix with this outline. kept: share of entries that may be other than zero."""
    return layouts()[outline.layout].estimate(outline, kept)


def layout_from_json(values: Mapping[str, Any], place: str) -> Layout:
    """Read what `to_json` wrote. Raises InputError, beginning with `place`, for an unknown layout or settings that cannot be right."""
    settings = dict(values)
    name = settings.pop("layout", None)
    if not isinstance(name, str) or name not in layouts():
        raise InputError(f"{place}: unknown layout {name!r}; it was written by a newer thrifty, or is broken")
    try:
        return layouts()[name].model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the layout"
        raise InputError(f"{place}: {where} of layout {name} is wrong, {problem['msg'].lower()}") from None


def names_of(key: str, layout: Layout) -> tuple[str, ...]:
    """Names of the tensors that a matrix may have."""
    return tuple(name_of_part(key, part) for part in (MAIN, *layout.part_names))


def groups_of(width: int, group_size: int) -> int:
    """Scales of a row. Raises ValueError where groups do not divide it."""
    if group_size and width % group_size:
        raise ValueError(f"groups of {group_size} do not divide {width} inputs")
    return width // group_size if group_size else 1


def spread(per_group: Tensor, width: int) -> Tensor:
    """[out, groups] -> [out, width]."""
    return per_group.repeat_interleave(width // per_group.shape[1], dim=1)
