"""Small floats in the formats of compressed-tensors, each with names and numbers of its own.

A matrix with the name `stem` is stored as

    nvfp4    stem.weight_packed uint8 [out, in / 2], .weight_scale float8_e4m3fn [out, in / 16], .weight_global_scale float32 [1]
    mxfp4    stem.weight_packed uint8 [out, in / 2], .weight_scale uint8 [out, in / 32]
    mxfp6    stem.weight_packed uint8 [out, in 3 / 4], .weight_scale uint8 [out, in / 32]
    mxfp8    stem.weight float8_e4m3fn [out, in],    .weight_scale uint8 [out, in / 32]
    fp8      stem.weight float8_e4m3fn [out, in],    .weight_scale [out, 1]

Of two codes in a byte the first lies in the lower half, and four codes of 6 bits fill three bytes from the lowest bit; a scale in uint8 is
the exponent of 2, plus 127; scales in float8 are divided by the global one, which is a power of two here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from jaxtyping import Float
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.formats import FLOATS
from thrifty.core.scaled import STANDARDS

FORMATS = {
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp6": "mxfp6-pack-quantized",
    "mxfp8": "mxfp8-quantized",
    "fp8": "float-quantized",
}
"""The name of each standard in `quantization_config`."""

INPUTS = ("nvfp4", "mxfp4", "mxfp8")
"""Those with scales of groups that inputs may become while the model runs."""

_BIAS = 127


def library_has(name: str) -> bool:
    """Whether the installed package compressed-tensors reads a standard."""
    return FORMATS[name] in BaseCompressor.registered_names()


def pack_floats(stem: str, encoded: Encoded, narrow: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The stored tensors of one matrix. narrow: a scale in the type that it is stored in, for `fp8`."""
    standard = STANDARDS[encoded.standard]
    codes, scale = encoded.tensors["codes"], encoded.tensors["scale"]
    if standard.numbers == "e2m1":
        tensors = {f"{stem}.weight_packed": codes[:, ::2] | (codes[:, 1::2] << 4)}
    elif standard.numbers == "e2m3":
        tensors = {f"{stem}.weight_packed": _three_bytes(codes)}
    else:
        tensors = {f"{stem}.weight": codes.contiguous().view(torch.float8_e4m3fn)}
    if standard.scale == "real":
        return {**tensors, f"{stem}.weight_scale": narrow(scale)}
    if standard.scale == "power_of_two":
        return {**tensors, f"{stem}.weight_scale": (torch.frexp(scale).exponent - 1 + _BIAS).to(torch.uint8)}
    whole = encoded.tensors["whole"]
    return {**tensors, f"{stem}.weight_scale": (scale * whole).to(torch.float8_e4m3fn), f"{stem}.weight_global_scale": whole.clone()}


def float_bytes(out_features: int, in_features: int, name: str, scale_bytes: int) -> int:
    """Bytes of the stored tensors of a matrix; scale_bytes: of a scale of `fp8`."""
    standard = STANDARDS[name]
    groups = in_features // standard.group_size if standard.group_size else 1
    each = scale_bytes if standard.scale == "real" else 1
    codes = out_features * in_features * FLOATS[standard.numbers]().bits // 8
    return codes + out_features * groups * each + (4 if standard.scale == "e4m3" else 0)


def read_floats(read: Callable[[str], Tensor], stem: str) -> Encoded:
    """The codes of one matrix; `read` gives a stored tensor by name, and raises KeyError for one that is not there."""
    scale, found = read(f"{stem}.weight_scale"), {}
    for part in ("weight_packed", "weight", "weight_global_scale"):
        with suppress(KeyError):
            found[part] = read(f"{stem}.{part}")
    name = _standard(found, scale)
    if "weight_packed" in found:
        packed = found["weight_packed"]
        codes = _four_codes(packed) if name == "mxfp6" else torch.stack([packed & 15, packed >> 4], dim=-1).reshape(packed.shape[0], -1)
    else:
        codes = found["weight"].view(torch.uint8)
    tensors = {"codes": codes, "numbers": FLOATS[STANDARDS[name].numbers]().numbers, "scale": scale.to(torch.float32)}
    if name == "nvfp4":
        tensors |= {"whole": found["weight_global_scale"], "scale": tensors["scale"] / found["weight_global_scale"]}
    elif scale.dtype == torch.uint8:
        tensors["scale"] = torch.ldexp(torch.ones(scale.shape), scale.to(torch.int32) - _BIAS)
    shape = (codes.shape[0], codes.shape[1])
    form = FLOATS[STANDARDS[name].numbers]()
    return Encoded("numbers", tensors, shape, float(form.bits), STANDARDS[name].group_size, standard=name)


def _standard(found: Mapping[str, Tensor], scale: Tensor) -> str:
    """Which one these tensors are."""
    if "weight_packed" in found:
        return "nvfp4" if "weight_global_scale" in found else "mxfp6" if _holds_six_bits(found["weight_packed"], scale) else "mxfp4"
    return "mxfp8" if scale.dtype == torch.uint8 else "fp8"


def _holds_six_bits(packed: Tensor, scale: Tensor) -> bool:
    """Whether codes are those of MXFP6, whose groups take 24 bytes: those of MXFP4 take 16, and of NVFP4 8."""
    return packed.shape[1] == 24 * scale.shape[1]


def _three_bytes(codes: Tensor) -> Tensor:
    """Codes of 6 bits, four of them in three bytes."""
    words = (codes.to(torch.int32).unflatten(1, (-1, 4)) << torch.tensor([0, 6, 12, 18])).sum(-1, dtype=torch.int32)
    return (words[..., None] >> torch.tensor([0, 8, 16]) & 255).to(torch.uint8).flatten(1)


def _four_codes(packed: Tensor) -> Tensor:
    """What `_three_bytes` packed."""
    words = (packed.to(torch.int32).unflatten(1, (-1, 3)) << torch.tensor([0, 8, 16])).sum(-1, dtype=torch.int32)
    return (words[..., None] >> torch.tensor([0, 6, 12, 18]) & 63).to(torch.uint8).flatten(1)


def float_shape(read: Callable[[str], Tensor], stem: str) -> tuple[int, int]:
    """(outputs, inputs) of a stored matrix."""
    with suppress(KeyError):
        packed = read(f"{stem}.weight_packed")
        out, width = packed.shape
        return out, width * 4 // 3 if _holds_six_bits(packed, read(f"{stem}.weight_scale")) else 2 * width
    out, width = read(f"{stem}.weight").shape
    return out, width


def decode_by_library(tensors: Mapping[str, Tensor], stem: str, form: str, weights: Mapping[str, Any]) -> Float[Tensor, "out in"]:
    """The matrix as the format's own library decodes it, float32. form: the format of the file. weights: how the config describes them."""
    parts = {key.removeprefix(f"{stem}."): tensor for key, tensor in tensors.items()}
    if weights["strategy"] == "channel" or form == "int-quantized":
        parts["weight_scale"] = parts["weight_scale"].to(torch.float32)  # the library computes in the type of the scale
    compressor = BaseCompressor.get_value_from_registry(form)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    return compressor.decompress(parts, scheme)["weight"].to(torch.float32)


def weights_of(name: str) -> dict[str, Any]:
    """How `quantization_config` describes the codes of a standard."""
    standard = STANDARDS[name]
    held: dict[str, Any] = {"num_bits": FLOATS[standard.numbers]().bits, "type": "float", "symmetric": True, "dynamic": False}
    if standard.scale == "real":
        return {**held, "strategy": "channel"}
    strategy, scale = ("tensor_group", "float8_e4m3fn") if standard.scale == "e4m3" else ("group", "uint8")
    return {**held, "strategy": strategy, "group_size": standard.group_size, "scale_dtype": f"torch.{scale}"}


def inputs_of(name: str) -> dict[str, Any]:
    """How `quantization_config` describes inputs that become a standard with scales of groups while the model runs."""
    args = weights_of(name)
    return {**args, "dynamic": "local" if args["strategy"] == "tensor_group" else True, "zp_dtype": args["scale_dtype"]}
