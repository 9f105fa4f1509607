"""Additive codebooks in the public layout of AQLM, which the package aqlm and vLLM run.

A linear `stem` is `stem.codes` int8 or int16 [out, groups, codebooks], which counts modulo 2^bits, `stem.codebooks` float16 [codebooks,
2^bits, 1, group_size] and `stem.scales` float16 [out, 1, 1, 1]; the inputs of a group are the sum of its codewords, times the scale. All of
them have one number of codebooks, one of bits and one size of groups, and every other linear layer is named in the config as left out. A
code takes 8 or 16 bits whatever it has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.export.container import METHOD, Container
from thrifty.export.container.additive import Additive
from thrifty.export.dense import write_folder
from thrifty.export.shards import Made, Piece, stored_in

PARTS = ("codes", "codebooks", "scales")
"""The stored tensors of one linear."""


def write(folder: Path, out: Path) -> dict[str, Any]:
    """Write the folder `out`, one matrix in memory at a time, and read it back; returns {bytes, tensors, bits_per_weight}.

    Raises InputError for a result that is not one of additive codebooks in the container, or whose codebooks differ in size; RunError when
    a matrix reads back otherwise. A folder appears whole or not at all.
    """
    config = json.loads((folder / "config.json").read_text())
    quantized, stored = config.pop("quantization_config", None), stored_in(folder)
    if quantized is None or quantized.get("quant_method") != METHOD:
        raise InputError(f"{folder} holds no additive codebooks; compress into additive with --format {METHOD} first")
    container = Container(folder, quantized, stored)
    layout = _layout(container)
    made = [part for key in container.matrices for part in _parts(container, key)]
    pieces: list[Piece | Made] = [*(stored[key] for key in container.plain), *made]
    left = [key.removesuffix(".weight") for key, piece in container.plain.items() if len(piece.shape) == 2 and key.endswith(".weight")]
    paths = sorted({*left, "lm_head"})
    own = {
        "quant_method": "aqlm",
        "in_group_size": layout.group_size,
        "out_group_size": 1,
        "num_codebooks": layout.codebooks,
        "nbits_per_codebook": layout.entries.bit_length() - 1,
        "linear_weights_not_to_quantize": [*paths, *(f"{path}.weight" for path in paths)],  # newer and older readers
    }
    changed = {**config, "dtype": "float16", "quantization_config": own}
    changed.pop("torch_dtype", None)
    size = write_folder(folder, out, pieces, changed, partial(_read_back, container))
    events.warn(f"readers of {out.name} compute in float16, as the layout asks for; quality was measured in float32")
    weights = sum(math.prod(matrix.shape) for matrix in container.matrices.values())
    return {"bytes": size, "tensors": len(pieces), "bits_per_weight": 8 * sum(part.nbytes for part in made) / weights}


def decode(tensors: Mapping[str, Tensor], stem: str) -> Float[Tensor, "out in"]:
    """A linear as the layout's documentation has it, float32."""
    codes, codebooks, scales = (tensors[f"{stem}.{part}"] for part in PARTS)
    entries = codebooks.shape[1]
    total = torch.zeros(codes.shape[0], codes.shape[1], codebooks.shape[2], codebooks.shape[3])
    for number, book in enumerate(codebooks.to(torch.float32)):
        total = total + book[codes[..., number].to(torch.int64) % entries]
    return (total * scales.to(torch.float32)).transpose(1, 2).reshape(codes.shape[0] * codebooks.shape[2], -1)


def _layout(container: Container) -> Additive:
    """What all matrices have in common."""
    layouts = {matrix.layout for matrix in container.matrices.values()}
    other = next((key for key, matrix in container.matrices.items() if not isinstance(matrix.layout, Additive)), None)
    if other is not None:
        raise InputError(f"{container.folder}: {other} is not held as additive codebooks, which is all that AQLM's layout has")
    sizes = {(one.codebooks, one.entries, one.group_size) for one in layouts if isinstance(one, Additive)}
    if len(sizes) != 1:
        raise InputError(f"{container.folder} has codebooks of {len(sizes)} kinds, and AQLM's layout one for a whole model")
    if container.stacked or any(one.transposed for one in layouts):
        raise InputError(f"{container.folder} has matrices that are no plain linear layers (experts in one tensor, Conv1D)")
    if any(not key.endswith(".weight") for key in container.matrices):
        raise InputError(f"{container.folder} has matrices that are no weights of linear layers")
    return next(one for one in layouts if isinstance(one, Additive))


def _parts(container: Container, key: str) -> list[Made]:
    """The stored tensors of one linear."""
    matrix, stem = container.matrices[key], key.removesuffix(".weight")
    layout, (out, width) = matrix.layout, matrix.shape
    assert isinstance(layout, Additive)
    shapes = {
        "codes": (out, width // layout.group_size, layout.codebooks),
        "codebooks": (layout.codebooks, layout.entries, 1, layout.group_size),
        "scales": (out, 1, 1, 1),
    }
    code_type = torch.int8 if layout.entries <= 256 else torch.int16
    types = {"codes": code_type, "codebooks": torch.float16, "scales": torch.float16}
    return [Made(f"{stem}.{part}", types[part], shapes[part], partial(_part, container, key, part, code_type)) for part in PARTS]


def _part(container: Container, key: str, part: str, code_type: torch.dtype) -> Tensor:
    tensors = container.encoded(key).tensors
    if part == "codes":
        # counted modulo 2^bits: codes of the upper half are negative where the type has no more bits
        return tensors["codes"].view(code_type) if tensors["codes"].dtype.itemsize == code_type.itemsize else tensors["codes"].to(code_type)
    values = tensors["codebooks"][:, :, None] if part == "codebooks" else tensors["scale"].reshape(-1, 1, 1, 1)
    narrow = values.to(torch.float16)
    if not torch.equal(narrow.to(torch.float32), values):
        raise InputError(f"{container.folder}: {part} of {key} are too large or too small for float16, which AQLM's layout has")
    return narrow


def _read_back(container: Container, staging: Path) -> None:
    """Raise RunError unless every matrix of the written files stands for what it did."""
    found = stored_in(staging)
    for key in container.matrices:
        stem = key.removesuffix(".weight")
        tensors = {f"{stem}.{part}": found[f"{stem}.{part}"].read() for part in PARTS}
        if not torch.equal(decode(tensors, stem), container.read(key)):
            raise RunError(f"{key} reads back from AQLM's layout otherwise than it was; this is a defect, please report it")
