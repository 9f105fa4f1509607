"""What matrices of the container do to their inputs: `inputs` of quantization_config, since version 2.

A list of {"turn": .., "bits": .., settings of the rounding, "matrices": [key, ..]}, each for the matrices that read alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from thrifty.base.errors import InputError
from thrifty.core.activations import Rounding
from thrifty.core.formats import FLOATS
from thrifty.core.hadamard import is_known
from thrifty.core.reading import Reading
from thrifty.core.scaled import STANDARDS

LAYOUTS = ("int", "affine", "numbers")
"""Of the matrices that may do something to their inputs: those that stay packed while the model runs."""


class Inputs(BaseModel):
    """As it stands in config.json. turn: order of the Hadamard matrices, 0 for none. bits: of the codes that inputs become, 0 for none.

    per, symmetric, standard: see `core.activations.Rounding`. scale, zero_point: of a grid that is fixed; without them each call finds its
    own.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    turn: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    bits: Annotated[int, Field(ge=0, le=8)] = 0
    per: Literal["token", "tensor", "group"] = "token"
    symmetric: bool = True
    standard: Literal["", "fp8", "mxfp8", "mxfp4", "nvfp4"] = ""
    scale: Annotated[float, Field(gt=0, lt=3e38)] | None = None
    zero_point: Annotated[float, Field(ge=-128, le=127)] | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.turn and not is_known(self.turn):
            raise ValueError(f"no Hadamard matrix of order {self.turn} is known")
        if not self.turn and not self.bits:
            raise ValueError("nothing is done to the inputs")
        if self.bits == 1:
            raise ValueError("codes have 2 bits at least")
        if (self.scale is None) != (self.zero_point is None) or (self.scale is not None and not self.bits):
            raise ValueError("a fixed grid has bits, a scale and a zero point")
        if (self.per == "group") != (self.standard not in ("", "fp8")):
            raise ValueError("MX and NVFP4 have scales of groups, and nothing else has")
        if self.standard and (self.bits != FLOATS[STANDARDS[self.standard].numbers]().bits or not self.symmetric or self.zero_point):
            raise ValueError(f"{self.standard} has bits of its own and no zero points")
        if (self.standard.startswith("mx") and self.scale is not None) or (self.standard == "nvfp4" and self.scale is None):
            raise ValueError("of scales of groups NVFP4 has a fixed one above them, and MX has none")
        return self

    @classmethod
    def of(cls, reading: Reading) -> Inputs:
        """How a reading stands in config.json."""
        rounding = reading.rounding
        if rounding is None:
            return cls(turn=reading.order)
        fixed = {} if rounding.scale is None else {"scale": float(rounding.scale), "zero_point": float(rounding.zero_point)}
        return cls(
            turn=reading.order, bits=rounding.bits, per=rounding.per, symmetric=rounding.symmetric, standard=rounding.standard, **fixed
        )

    def reading(self) -> Reading:
        """What it stands for."""
        if not self.bits:
            return Reading(self.turn)
        # on the processor, whatever device transformers builds a model on meanwhile
        fixed = (None, None) if self.scale is None else tuple(torch.tensor([one], device="cpu") for one in (self.scale, self.zero_point))
        return Reading(self.turn, Rounding(self.bits, self.per, self.symmetric, *fixed, self.standard))

    def to_json(self) -> dict[str, Any]:
        """The settings that are not the defaults."""
        return self.model_dump(exclude_defaults=True)


def inputs_to_json(inputs: Mapping[str, Inputs]) -> list[dict[str, Any]]:
    """`inputs` of quantization_config; inputs: by the key of the matrix."""
    groups: dict[str, dict[str, Any]] = {}
    for key, found in inputs.items():
        settings = found.to_json()
        groups.setdefault(json.dumps(settings, sort_keys=True), {**settings, "matrices": []})["matrices"].append(key)
    return list(groups.values())


def inputs_from_json(values: Any, matrices: Mapping[str, Any], place: str) -> dict[str, Reading]:
    """What matrices (`folder.Matrix`, by key) do to their inputs. Raises InputError, beginning with `place`, for what cannot be right."""
    if not isinstance(values, list):
        raise InputError(f"{place}: inputs must be a list; got {type(values).__name__}")
    found: dict[str, Reading] = {}
    for number, group in enumerate(values):
        where = f"{place}, inputs {number}"
        if not isinstance(group, dict) or not isinstance(group.get("matrices"), list):
            raise InputError(f"{where} has no matrices")
        try:
            inputs = Inputs.model_validate({name: value for name, value in group.items() if name != "matrices"})
        except ValidationError as error:
            problem = error.errors()[0]
            said = ".".join(map(str, problem["loc"])) or "a setting"
            raise InputError(f"{where}: {said} is wrong, {problem['msg'].lower()}") from None
        for key in group["matrices"]:
            matrix = matrices.get(key) if isinstance(key, str) else None
            if matrix is None:
                raise InputError(f"{where}: there is no matrix {key!r}")
            if key in found:
                raise InputError(f"{where}: {key} is there twice")
            if matrix.layout.name not in LAYOUTS or matrix.layout.transposed:
                raise InputError(f"{where}: {key} has a layout whose inputs stay as they are")
            if inputs.turn and matrix.shape[1] % inputs.turn:
                raise InputError(f"{where}: blocks of {inputs.turn} do not divide the {matrix.shape[1]} inputs of {key}")
            found[key] = reading = inputs.reading()
            size = reading.rounding.group_size if reading.rounding is not None else 0
            if size and matrix.shape[1] % size:
                raise InputError(f"{where}: groups of {size} do not divide the {matrix.shape[1]} inputs of {key}")
    return found
