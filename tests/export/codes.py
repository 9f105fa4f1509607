"""Random codes, and tiny models whose matrices are codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import tiny
from thrifty.base.records import Encoded
from thrifty.core.grids import fit_step, grouped, significant_bits, snap_scale
from thrifty.export.compressed import pack, quantization_config, scheme_of
from thrifty.weights.target.affine import Affine


def encoded(
    seed: int, out: int, width: int, group_size: int, bits: int, symmetric: bool, octaves: tuple[float, float] = (-17.0, 3.0)
) -> Encoded:
    """Random codes; octaves: between which powers of two the scales lie, by default all that a grid can have."""
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    groups = width // group_size if group_size else 1
    scale = torch.exp2(torch.rand(out, groups, generator=generator) * (octaves[1] - octaves[0]) + octaves[0])
    tensors = {
        "codes": torch.randint(low, high, (out, width), generator=generator, dtype=torch.int8),
        "scale": snap_scale(scale, significant_bits(2**bits, symmetric)),
    }
    if not symmetric:
        tensors["zero_point"] = torch.randint(low, high, (out, groups), generator=generator, dtype=torch.int8)
    return Encoded("int", tensors, (out, width), bits, group_size)


def shifted(seed: int, out: int, width: int, group_size: int, bits: int, size: float = 1.0, middle: float = 0.0) -> Encoded:
    """Random weights of this size, around this many times it, on grids that need not meet zero."""
    weight = (torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) + middle) * size
    points = Affine(bits, group_size).fit(weight)
    return points.encode(points.project(weight))


def round_to_codes(weight: Tensor, group_size: int, bits: int, symmetric: bool) -> Encoded:
    """A matrix rounded to the nearest codes."""
    groups = grouped(weight.float(), group_size)
    step = fit_step(groups, 2**bits, symmetric)
    codes = torch.round(groups / step.scale[..., None])
    tensors = {"scale": step.scale}
    if step.zero_point is not None:
        codes = codes + step.zero_point[..., None]
        tensors["zero_point"] = step.zero_point.to(torch.int8)
    tensors["codes"] = codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).reshape(weight.shape).to(torch.int8)
    return Encoded("int", tensors, tuple(weight.shape), bits, group_size)


def change_config(folder: Path, **changes: Any) -> Path:
    """Other values in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def packed_model(name: str, folder: Path, form: Callable[[str], tuple[int, int, bool]], dequantize: bool = False) -> dict[str, Encoded]:
    """Write a tiny model with the linears of its blocks as codes; returns the codes by stem.

    form: (group size, bits, symmetric) of the matrix with that stem. dequantize: see `quantization_config`.
    """
    tiny(name, folder)
    tensors = load_file(folder / "model.safetensors")
    codes = {}
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        stem = key.removesuffix(".weight")
        codes[stem] = round_to_codes(tensors.pop(key), *form(stem))
        tensors |= pack(stem, codes[stem], (torch.float32,) if dequantize else (torch.bfloat16, torch.float16))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    schemes = {stem: scheme_of(code) for stem, code in codes.items()}
    change_config(folder, quantization_config=quantization_config(schemes, ["lm_head"], dequantize=dequantize))
    return codes
