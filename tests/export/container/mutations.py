"""Broken containers: what a damaged disk, a stopped download or ill will makes of a good folder."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.export.container.matrices import affine, columns, integers, k_quants, numbers, standard, sums, values
from thrifty.core.activations import Rounding
from thrifty.core.reading import AS_THEY_ARE, Reading
from thrifty.export.container import Inputs, layout_of
from thrifty.export.container.folder import Matrix, container_config
from thrifty.export.container.layout import name_of_part

WEIGHTS = "model.safetensors"
READINGS = {
    "a.weight": Reading(40, Rounding(4, "token", True)),
    "b.weight": Reading(0, Rounding(8, "tensor", False, torch.tensor([0.02]), torch.tensor([3.0]))),
    "d.weight": Reading(8, Rounding(8, "token", True, standard="fp8")),
    "e.weight": Reading(0, Rounding(4, "group", True, torch.tensor([0.01]), torch.tensor([0.0]), "nvfp4")),
}
"""What matrices of the folder do to their inputs."""

Change = Callable[[random.Random, bytearray, dict[str, Any]], bytearray]


def good_folder(folder: Path) -> dict[str, Tensor]:
    """Write a folder that holds a matrix in every layout, some of which turn or round their inputs; returns what each decodes to for inputs
    as they are, by key."""
    encoded = {
        "a.weight": integers(0, 6, 40, 8, 8, False, "bfloat16"),
        "b.weight": integers(1, 6, 40, 3, 0, True, "exponent", 0.6),
        "c.weight": numbers(2, 6, 40, "posit6es1", 20, "exponent"),
        "d.weight": numbers(3, 6, 40, "five", 0, "float32"),
        "e.weight": standard(4, 6, 48, "nvfp4"),
        "f.weight": columns(5, 6, 40, 9),
        "g.weight": values(6, 6, 40, torch.bfloat16, 0.7),
        "i.weight": sums(10, 6, 10, 2, 3, 4, "bfloat16"),
        "j.weight": k_quants(11, 2, 1, "Q3_K"),
        "k.weight": k_quants(12, 2, 1, "Q4_K"),
        "l.weight": affine(13, 4, 40, 3, 8, "bfloat16"),
        "h.experts.0.0": integers(7, 3, 16, 5, 0, True, "bfloat16"),
        "h.experts.0.3": integers(8, 5, 16, 16, 0, True, "bfloat16"),
        "h.experts.1.0": integers(9, 8, 16, 7, 4, False, "float16"),
    }
    matrices, tensors = {}, {"plain.weight": torch.arange(6.0)}
    for key, matrix in encoded.items():
        layout = layout_of(matrix, sparse=key in ("b.weight", "g.weight"), transposed=key == "c.weight")
        matrices[key] = Matrix(layout, matrix.shape)
        tensors |= {name_of_part(key, part): tensor.clone() for part, tensor in layout.encode(matrix).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = container_config(matrices, {"h.experts": (2, 8, 16)}, {key: Inputs.of(reading) for key, reading in READINGS.items()})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    made = {key: READINGS.get(key, AS_THEY_ARE).folded(matrix.decode()) for key, matrix in encoded.items() if not key.startswith("h.")}
    made["c.weight"] = made["c.weight"].T
    first, second, third = (encoded[f"h.experts.{place}"].decode() for place in ("0.0", "0.3", "1.0"))
    return {**made, "h.experts": torch.stack([torch.cat([first, second]), third])}


def mutated(content: bytes, config: dict[str, Any], count: int, seed: int) -> Iterator[tuple[str, bytes, str]]:
    """(what was done, the weights, config.json) of `count` broken folders."""
    draw = random.Random(seed)
    for _ in range(count):
        weights, changed = bytearray(content), json.loads(json.dumps(config))
        done = []
        for change in draw.choices(CHANGES, k=draw.choice([1, 1, 1, 2, 3])):
            done.append(change.__name__)
            weights = change(draw, weights, changed)
        text = json.dumps(changed)
        if draw.random() < 0.1:
            done.append("config_bytes")
            broken = bytearray(text.encode())
            broken[draw.randrange(len(broken))] = draw.randrange(256)
            text = broken.decode("utf-8", "replace")
        yield " ".join(done), bytes(weights), text


def header_of(weights: bytes) -> tuple[dict[str, Any], bytes] | None:
    """(header, content) of a safetensors file, or None where an earlier change broke it."""
    try:
        (length,) = struct.unpack("<Q", weights[:8])
        header = json.loads(weights[8 : 8 + length])
    except (ValueError, struct.error, OverflowError):
        return None
    return (header, bytes(weights[8 + length :])) if isinstance(header, dict) else None


def with_header(header: dict[str, Any], content: bytes) -> bytearray:
    text = json.dumps(header).encode()
    return bytearray(struct.pack("<Q", len(text)) + text + content)


def cut_short(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    return weights[: draw.randrange(len(weights) + 1)]


def flip_content(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    for _ in range(draw.randint(1, 8)):
        if weights:
            weights[draw.randrange(len(weights))] ^= 1 << draw.randrange(8)
    return weights


def flip_header(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    if weights:
        weights[draw.randrange(min(len(weights), 1200))] ^= 1 << draw.randrange(8)
    return weights


def overwrite(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    """Random bytes over one whole tensor: orders, masks, scales and tables that make no sense."""
    found = header_of(weights)
    names = [name for name in found[0] if name != "__metadata__"] if found else []
    if found is None or not names:
        return weights
    try:
        start, stop = found[0][draw.choice(names)]["data_offsets"]
    except (KeyError, TypeError, ValueError):
        return weights
    begin, filler = len(weights) - len(found[1]), draw.choice([0, 255, None])
    for place in range(begin + start, min(begin + stop, len(weights))):
        weights[place] = draw.randrange(256) if filler is None else filler
    return weights


def change_entry(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    """Another type, shape or place of one tensor in the header, a tensor more or one less."""
    found = header_of(weights)
    names = [name for name in found[0] if name != "__metadata__"] if found else []
    if found is None or not names:
        return weights
    header, content = found
    name = draw.choice(names)
    if not isinstance(header[name], dict):
        return weights
    what = draw.choice(["dtype", "shape", "data_offsets", "remove", "copy", "reshape"])
    if what == "remove":
        del header[name]
    elif what == "copy":
        header[draw.choice(names)] = header[name]
    elif what == "reshape":
        start, stop = draw.randrange(len(content) + 1), draw.randrange(len(content) + 1)
        header[name] |= {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
    else:
        header[name][what] = draw.choice(STRANGE[what])
    return with_header(header, content)


def change_setting(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    """Another value of a setting of a layout."""
    group = draw.choice(_groups(config))
    if isinstance(group, dict) and group:
        name = draw.choice([*group, "levels", "group_size", "scale", "sparse", "transposed", "surprise"])
        group[name] = draw.choice([*STRANGE["setting"], *(other.get(name) for other in _groups(config) if isinstance(other, dict))])
    return weights


def change_shape(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    """Another shape of a matrix, another name, or one less."""
    group = draw.choice(_groups(config))
    matrices = group.get("matrices") if isinstance(group, dict) else None
    if isinstance(matrices, dict) and matrices:
        key = draw.choice(list(matrices))
        what = draw.choice(["shape", "side", "rename", "remove"])
        if what == "shape":
            matrices[key] = draw.choice(STRANGE["shape"])
        elif what == "side" and isinstance(matrices[key], list) and matrices[key]:
            matrices[key][draw.randrange(len(matrices[key]))] = draw.choice([1, 3, 8, 39, 41, 80, 2**20, 2**30, 2**31, 2**62, 10**30])
        else:
            found = matrices.pop(key)
            if what == "rename":
                matrices[draw.choice([key + ".x", "plain.weight", "h.experts.2.0", "h.experts.0.1", "z"])] = found
    return weights


def change_top(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    """Another value beside the groups."""
    own = config.get("quantization_config")
    if isinstance(own, dict):
        name = draw.choice(["version", "groups", "stacked", "inputs", "surprise"])
        own[name] = draw.choice([*STRANGE["setting"], {"h.experts": draw.choice(STRANGE["shape"])}, {"h.experts": [2, 8, 2**30]}])
    return weights


def change_inputs(draw: random.Random, weights: bytearray, config: dict[str, Any]) -> bytearray:
    """Another value of what is done to inputs, for other matrices, or for one matrix twice."""
    own = config.get("quantization_config")
    inputs = own.get("inputs") if isinstance(own, dict) else None
    group = draw.choice(inputs) if isinstance(inputs, list) and inputs else None
    if isinstance(group, dict):
        name = draw.choice(["turn", "bits", "per", "symmetric", "scale", "zero_point", "matrices", "surprise"])
        keys = [["a.weight"], ["c.weight"], ["f.weight"], ["h.experts.0.0"], ["d.weight", "d.weight"], ["x"], [3]]
        numbers = [4, 12, 20, 36, 40, 48, 2**31 - 2, 2**61 + 2, 0.5, 1e300, float("nan"), "tensor"]
        group[name] = draw.choice([*STRANGE["setting"], *keys, *numbers])
    return weights


def _groups(config: dict[str, Any]) -> list[Any]:
    own = config.get("quantization_config")
    groups = own.get("groups") if isinstance(own, dict) else None
    return groups if isinstance(groups, list) and groups else [{}]


STRANGE: dict[str, list[Any]] = {
    "dtype": ["U8", "F32", "BF16", "F16", "I64", "I16", "F8_E4M3", "BOOL", "X", 3, None],
    "shape": [[], [0], [1], [-1, 4], [2**40], [2**62, 4], ["4"], None, 7, [6, 40], [40, 6], [3, 80], [1, 1], [240, 1], [2.0, 2], [True, 4]],
    "data_offsets": [[0, 0], [0, 2**50], [-4, 4], [10, 2], None, [0], ["a", "b"], [2**63, 2**63 + 8]],
    "setting": [
        0,
        1,
        2,
        3,
        7,
        8,
        255,
        65536,
        65537,
        -1,
        2**40,
        True,
        False,
        None,
        "",
        "int",
        "exponent",
        "float32",
        "e2m1",
        "posit6es1",
        [],
        {},
    ],
}
CHANGES: list[Change] = [
    cut_short,
    flip_content,
    flip_header,
    overwrite,
    change_entry,
    change_setting,
    change_shape,
    change_top,
    change_inputs,
]
