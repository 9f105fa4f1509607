"""A folder in our container: what its config.json says of the matrices, and the matrices themselves.

`quantization_config` is {"quant_method": "thrifty", "version": 1, "groups": [{"layout": .., settings, "matrices": {key: [out, in]}}]}.
Where a tensor of the model holds many matrices (experts), "stacked" gives its shape, {key: [experts, rows, in]}, and the matrix of rows
`start` and following of expert `e` has the key `key.e.start`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.finite import all_finite
from thrifty.core.reading import AS_THEY_ARE
from thrifty.export.container.inputs import Inputs, inputs_from_json, inputs_to_json
from thrifty.export.container.layout import WEIGHTS_PER_BYTE, Layout, Parts, Stored, layout_from_json, names_of

METHOD = "thrifty"
VERSION, READS_INPUTS = 1, 2
"""Files whose matrices do something to their inputs have the second version: whoever reads the first alone must refuse them."""
LARGEST_SIDE = 1 << 31


@dataclass(frozen=True)
class Matrix:
    """How one matrix is held."""

    layout: Layout
    shape: tuple[int, int]


def container_config(
    matrices: Mapping[str, Matrix], stacked: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Inputs] | None = None
) -> dict[str, Any]:
    """`quantization_config` of config.json. matrices: by key. stacked: shapes of the tensors that hold many. inputs: what matrices do to
    theirs, by key."""
    groups: dict[str, dict[str, Any]] = {}
    for key, matrix in matrices.items():
        settings = matrix.layout.to_json()
        group = groups.setdefault(json.dumps(settings, sort_keys=True), {**settings, "matrices": {}})
        group["matrices"][key] = list(matrix.shape)
    config = {"quant_method": METHOD, "version": VERSION, "groups": list(groups.values())}
    if inputs:
        config |= {"version": READS_INPUTS, "inputs": inputs_to_json(inputs)}
    return {**config, "stacked": {key: list(shape) for key, shape in stacked.items()}} if stacked else config


class Container:
    """The tensors of a folder as the model has them; stored: those of its files.

    shapes: of every tensor that is held as codes, by disk key. plain: the stored tensors that are no part of one. readings: what matrices
    do to their inputs, by key, where they do anything.
    Raises InputError for a config that cannot be right. Parts are compared with the file's header when they are read.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
        self.folder, self.place = folder, f"{folder / 'config.json'}: quantization_config"
        self._stored = stored
        if config.get("quant_method") != METHOD:
            raise InputError(f"{self.place} is not of {METHOD}")
        version = config.get("version")
        if version not in (VERSION, READS_INPUTS) or isinstance(version, bool):
            raise InputError(f"{self.place} has version {version!r}; this thrifty reads versions {VERSION} and {READS_INPUTS}: update it")
        known = {"quant_method", "version", "groups", "stacked", "dequantize", *(("inputs",) if version == READS_INPUTS else ())}
        unknown = sorted(config.keys() - known)
        if unknown:
            raise InputError(f"{self.place} has an unknown key {unknown[0]!r}")
        self.matrices = self._matrices(config.get("groups"))
        self.stacked = self._stacks(config.get("stacked", {}))
        inside = {key for rows in self.stacked.values() for key in rows}
        self.shapes: dict[str, tuple[int, ...]] = {
            key: matrix.shape[::-1] if matrix.layout.transposed else matrix.shape
            for key, matrix in self.matrices.items()
            if key not in inside
        }
        self.shapes |= self._stack_shapes
        parts = {name for key, matrix in self.matrices.items() for name in names_of(key, matrix.layout)}
        self.plain = {key: found for key, found in stored.items() if key not in parts}
        alone = {key: matrix for key, matrix in self.matrices.items() if key not in inside}
        self.readings = inputs_from_json(config.get("inputs", []), alone, self.place)
        double = next((key for key in self.shapes if key in self.plain), None)
        if double is not None:
            raise InputError(f"{self.place}: {double} is stored twice, as codes and plain")

    def _matrices(self, groups: Any) -> dict[str, Matrix]:
        found: dict[str, Matrix] = {}
        if not isinstance(groups, list):
            raise InputError(f"{self.place}: groups must be a list; got {type(groups).__name__}")
        for number, group in enumerate(groups):
            place = f"{self.place}, group {number}"
            if not isinstance(group, dict) or not isinstance(group.get("matrices"), dict):
                raise InputError(f"{place} has no matrices")
            layout = layout_from_json({name: value for name, value in group.items() if name != "matrices"}, place)
            for key, shape in group["matrices"].items():
                if key in found:
                    raise InputError(f"{place}: {key} is there twice")
                found[key] = Matrix(layout, self._shape(place, key, shape, 2))  # type: ignore[arg-type]
                self._check_size(place, key, found[key])
        return found

    def _shape(self, place: str, key: str, shape: Any, dimensions: int) -> tuple[int, ...]:
        whole = isinstance(shape, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in shape)
        if not whole or len(shape) != dimensions or not all(1 <= side < LARGEST_SIDE for side in shape):
            raise InputError(f"{place}: {key} has the shape {shape!r}; it must be {dimensions} whole numbers above 0")
        return tuple(shape)

    def _check_size(self, place: str, key: str, matrix: Matrix) -> None:
        """Refuse a matrix that is too large for what is stored of it, before anything is made of that size."""
        if key not in self._stored:
            raise InputError(f"{self.folder}: the weights lack {key}; copy or download the folder again.")
        size = sum(self._stored[name].nbytes for name in names_of(key, matrix.layout) if name in self._stored)
        if math.prod(matrix.shape) > WEIGHTS_PER_BYTE * size:
            raise InputError(f"{place}: {key} of shape {list(matrix.shape)} cannot lie in the {size:,} bytes that are stored of it")

    def _stacks(self, stacked: Any) -> dict[str, dict[str, tuple[int, int]]]:
        """For each tensor that holds many matrices, where each begins: key -> (expert, first row)."""
        if not isinstance(stacked, dict):
            raise InputError(f"{self.place}: stacked must be a mapping; got {type(stacked).__name__}")
        self._stack_shapes = {key: self._shape(f"{self.place}, stacked", key, shape, 3) for key, shape in stacked.items()}
        parts: dict[str, dict[str, tuple[int, int]]] = {key: {} for key in self._stack_shapes}
        for key in self.matrices:
            owner, _, start = key.rpartition(".")
            owner, _, expert = owner.rpartition(".")
            if owner in parts and expert.isascii() and start.isascii() and expert.isdigit() and start.isdigit():
                parts[owner][key] = (int(expert), int(start))
        for key, (experts, rows, width) in self._stack_shapes.items():
            self._check_cover(key, parts[key], experts, rows, width)
        return parts

    def _check_cover(self, key: str, parts: Mapping[str, tuple[int, int]], experts: int, rows: int, width: int) -> None:
        """Every row of every expert must come from one matrix."""
        place, following = (0, 0), sorted(parts.items(), key=lambda item: item[1])
        for name, (expert, start) in following:
            matrix = self.matrices[name]
            if place == (expert - 1, rows):
                place = (expert, 0)
            if (expert, start) != place or matrix.shape[1] != width or matrix.layout.transposed:
                raise InputError(f"{self.place}: {name} does not follow what comes before it in {key}")
            place = (expert, start + matrix.shape[0])
        if place != (experts - 1, rows):
            raise InputError(f"{self.place}: the matrices of {key} do not fill its shape {[experts, rows, width]}")

    @property
    def rounds(self) -> bool:
        """Whether any matrix rounds its inputs."""
        return any(reading.rounding is not None for reading in self.readings.values())

    def encoded(self, key: str) -> Encoded:
        """The codes of one matrix, [out, in]: that of its inputs as it reads them, turned where `readings` says so."""
        matrix = self.matrices[key]
        parts = Parts(key, self._stored)
        try:
            return matrix.layout.decode(parts, matrix.shape)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise parts.fail("", f"cannot be right ({error})") from None

    def read(self, key: str) -> Tensor:
        """A tensor of the model that is held as codes, float32, in the layout that the model's own file has, for inputs as they are."""
        if key not in self._stack_shapes:
            values = self._values(key)
            return values.T.contiguous() if self.matrices[key].layout.transposed else values
        made = torch.empty(self._stack_shapes[key])
        for name, (expert, start) in self.stacked[key].items():
            made[expert, start : start + self.matrices[name].shape[0]] = self._values(name)
        return made

    def _values(self, key: str) -> Tensor:
        values = self.readings.get(key, AS_THEY_ARE).folded(self.encoded(key).decode())
        if not all_finite(values):
            raise Parts(key, self._stored).fail("", "stands for numbers that are not finite")
        return values
