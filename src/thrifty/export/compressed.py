"""Integers in the compressed-tensors formats `pack-quantized` and `int-quantized`, which transformers and vLLM read.

A matrix with the name `stem` is stored as `stem.weight_packed` int32 [out, words], `stem.weight_scale` [out, groups], `stem.weight_shape`
int64 [2], and with zero points `stem.weight_zero_point` int32, packed along the outputs. Codes of 2 and 3 bits are held in 4-bit places
and codes of 5 to 7 bits in 8-bit places: those are the two widths that all readers agree on.

Readers round the inputs of a matrix to integers in `int-quantized` only: `stem.weight` int8 [out, in] whatever the bits,
`stem.weight_scale` [out, groups], and where the grid of the inputs is fixed `stem.input_scale` float32 [1] and `stem.input_zero_point` int8
[1]. To small floats they round those of matrices of the same floats: a fixed scale of FP8 is `stem.input_scale` float32 [1], and NVFP4 has
`stem.input_global_scale` float32 [1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from jaxtyping import Float
from torch import Tensor

from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded
from thrifty.core.activations import Rounding
from thrifty.core.packing import pack_words, unpack_words
from thrifty.export.compressed_floats import (
    FORMATS,
    INPUTS,
    decode_by_library,
    float_bytes,
    float_shape,
    inputs_of,
    pack_floats,
    read_floats,
    weights_of,
)

INTEGERS = "pack-quantized"
"""The format that holds integers."""

BYTES = "int-quantized"
"""The format that holds integers whose inputs are rounded, too."""

PARTS = (
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
)
"""The stored tensors of one matrix."""

_NEEDED = {
    INTEGERS: ("weight_packed", "weight_scale", "weight_shape"),
    BYTES: ("weight", "weight_scale"),
    FORMATS["nvfp4"]: ("weight_packed", "weight_scale", "weight_global_scale"),
    FORMATS["mxfp4"]: ("weight_packed", "weight_scale"),
    FORMATS["mxfp6"]: ("weight_packed", "weight_scale"),
    FORMATS["mxfp8"]: ("weight", "weight_scale"),
    FORMATS["fp8"]: ("weight", "weight_scale"),
}
"""Those that no matrix can be read without, by format."""


EXPERTS = r"re:.*\.experts\.\d+\..*"
"""The pattern by which readers find the scheme of experts."""


@dataclass(frozen=True)
class Inputs:
    """How readers round the inputs of a matrix. dynamic: whether each call finds all of its grid; the rest as `Rounding` has it."""

    bits: int
    per: Literal["token", "tensor", "group"]
    symmetric: bool
    dynamic: bool
    standard: str = ""

    @classmethod
    def of(cls, rounding: Rounding) -> Inputs:
        """What readers must be told of a rounding; not one by channel, which they do not know."""
        assert rounding.per != "channel", "no reader rounds inputs by channel"
        return cls(rounding.bits, rounding.per, rounding.symmetric, rounding.scale is None, rounding.standard)

    def to_config(self) -> dict[str, Any]:
        """`input_activations` of a group."""
        if self.per == "group":
            return inputs_of(self.standard)
        kind = {"num_bits": self.bits, "type": "float" if self.standard else "int", "symmetric": self.symmetric}
        return {**kind, "strategy": self.per, "dynamic": self.dynamic}

    @classmethod
    def from_config(cls, found: Mapping[str, Any]) -> Inputs:
        """Read what `to_config` wrote. Raises InputError for what is rounded in another way."""
        known = {name: inputs_of(name) for name in INPUTS}
        for name, args in known.items():
            if all(found.get(key) == value for key, value in args.items() if key not in ("scale_dtype", "zp_dtype")):
                return cls(args["num_bits"], "group", True, args["dynamic"] is True, name)
        bits, floats = found.get("num_bits"), found.get("type") == "float"
        whole = found.get("strategy") in ("token", "tensor") and isinstance(bits, int)
        if not whole or (floats and (bits, found.get("symmetric")) != (8, True)) or found.get("type") not in ("int", "float"):
            raise InputError(
                f"inputs rounded like {dict(found)} are not read here; only integers and FP8 with one scale a token or tensor are, "
                f"and {', '.join(known)}"
            )
        return cls(bits, found["strategy"], bool(found.get("symmetric")), bool(found.get("dynamic")), "fp8" if floats else "")


@dataclass(frozen=True)
class Scheme:
    """How a matrix is held. bits: width of a place, 4 or 8. group_size: inputs that share a scale, 0 for the whole row.

    standard: which small floats the codes are, as `Encoded` has it; empty for integers. packed: whether several codes lie in a word; else
    each is a byte. inputs: how those of the matrix are rounded.
    """

    bits: int
    group_size: int
    symmetric: bool
    standard: str = ""
    packed: bool = True
    inputs: Inputs | None = None

    @property
    def format(self) -> str:
        """Its name in `quantization_config`."""
        return FORMATS[self.standard] if self.standard else INTEGERS if self.packed else BYTES

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scheme:
        """Read what `to_json` wrote."""
        inputs = values["inputs"]
        return cls(**{**values, "inputs": None if inputs is None else Inputs(**inputs)})


def scheme_of(encoded: Encoded) -> Scheme:
    """The scheme that holds these codes."""
    return Scheme(4 if math.ceil(encoded.bits) <= 4 else 8, encoded.group_size, "zero_point" not in encoded.tensors, encoded.standard)


def pack_bytes(stem: str, encoded: Encoded, scale_types: Sequence[torch.dtype] = (torch.bfloat16, torch.float16)) -> dict[str, Tensor]:
    """The stored tensors of one matrix of integers without zero points, each code a byte; as `pack` for the rest."""
    return {
        f"{stem}.weight": encoded.tensors["codes"].to(torch.int8).contiguous(),
        f"{stem}.weight_scale": _narrow(encoded.tensors["scale"], scale_types, stem),
    }


def pack_rounding(stem: str, rounding: Rounding | None) -> dict[str, Tensor]:
    """The stored tensors of what is fixed of a rounding of inputs; none where nothing is."""
    if rounding is None or rounding.scale is None:
        return {}
    if rounding.standard == "nvfp4":
        return {f"{stem}.input_global_scale": rounding.scale.clone()}
    tensors = {f"{stem}.input_scale": rounding.scale.clone()}
    if not rounding.symmetric and rounding.zero_point is not None:
        tensors[f"{stem}.input_zero_point"] = rounding.zero_point.to(torch.int8)
    return tensors


def pack(stem: str, encoded: Encoded, scale_types: Sequence[torch.dtype] = (torch.bfloat16, torch.float16)) -> dict[str, Tensor]:
    """The stored tensors of one matrix. scale_types: what the scales may be stored in, the first that holds them.

    Raises RunError when none does: solvers get scales that fit.
    """
    if encoded.standard:
        return pack_floats(stem, encoded, lambda scale: _narrow(scale, scale_types, stem))
    bits = scheme_of(encoded).bits
    tensors = {
        f"{stem}.weight_packed": pack_words(encoded.tensors["codes"], bits),
        f"{stem}.weight_scale": _narrow(encoded.tensors["scale"], scale_types, stem),
        f"{stem}.weight_shape": torch.tensor(encoded.shape, dtype=torch.int64),
    }
    zero_point = encoded.tensors.get("zero_point")
    if zero_point is not None:
        tensors[f"{stem}.weight_zero_point"] = pack_words(zero_point.T.contiguous(), bits).T.contiguous()
    return tensors


def _narrow(scale: Float[Tensor, "out groups"], types: Sequence[torch.dtype], stem: str) -> Tensor:
    for dtype in types:
        if torch.equal(scale.to(dtype).to(torch.float32), scale):
            return scale.to(dtype).contiguous()
    raise RunError(f"{stem}: its scales have too many bits for {types[-1]}")


def packed_bytes(out_features: int, in_features: int, scheme: Scheme, scale_type: torch.dtype = torch.bfloat16) -> int:
    """Bytes of the stored tensors of a matrix."""
    fixed = scheme.inputs is not None and not scheme.inputs.dynamic
    if scheme.standard:
        return float_bytes(out_features, in_features, scheme.standard, scale_type.itemsize) + (4 if fixed else 0)
    per_word = 32 // scheme.bits
    groups = in_features // scheme.group_size if scheme.group_size else 1
    if not scheme.packed:
        return out_features * in_features + scale_type.itemsize * out_features * groups + (5 if fixed else 0)
    zero_points = 0 if scheme.symmetric else 4 * -(-out_features // per_word) * groups
    return 4 * out_features * -(-in_features // per_word) + scale_type.itemsize * out_features * groups + zero_points + 16


def read_packed(read: Callable[[str], Tensor], stem: str) -> Encoded:
    """The codes of one matrix; `read` gives a stored tensor by name, and raises KeyError for one that is not there."""
    try:
        out, width = (int(length) for length in read(f"{stem}.weight_shape"))
    except KeyError:  # words of integers alone have it
        return _read_bytes(read, stem) or read_floats(read, stem)
    words, scale = read(f"{stem}.weight_packed"), read(f"{stem}.weight_scale")
    bits = 4 if words.shape[1] == -(-width // 8) else 8
    tensors = {"codes": unpack_words(words, bits, width), "scale": scale.to(torch.float32)}
    with suppress(KeyError):
        zero_points = read(f"{stem}.weight_zero_point")
        tensors["zero_point"] = unpack_words(zero_points.T.contiguous(), bits, out).T.contiguous()
    group_size = width // scale.shape[1] if scale.shape[1] > 1 else 0
    return Encoded("int", tensors, (out, width), float(bits), group_size)


def _read_bytes(read: Callable[[str], Tensor], stem: str) -> Encoded | None:
    """Codes that lie in a byte each; None where the matrix is none of these."""
    with suppress(KeyError):
        codes, scale = read(f"{stem}.weight"), read(f"{stem}.weight_scale").to(torch.float32)
        if codes.dtype == torch.int8:
            small = bool((codes >= -8).all()) and bool((codes <= 7).all())  # what fits places of 4 bits is no other matrix in them
            group_size = codes.shape[1] // scale.shape[1] if scale.shape[1] > 1 else 0
            return Encoded("int", {"codes": codes, "scale": scale}, tuple(codes.shape), 4.0 if small else 8.0, group_size)
    return None


def _group_of(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The group of a linear module: one that names it, else one whose pattern fits, else that of all linears."""
    fits: tuple[Callable[[str], bool], ...] = (
        lambda target: target == path,
        lambda target: target.startswith("re:") and re.match(target.removeprefix("re:"), path) is not None,
        lambda target: target == "Linear",
    )
    groups = config.get("config_groups", {}).values()
    return next((group for fit in fits for group in groups if any(map(fit, group["targets"]))), {})


def read_rounding(config: Mapping[str, Any], read: Callable[[str], Tensor], path: str, stem: str) -> Rounding | None:
    """How the inputs of the linear module at `path` are rounded. config: `quantization_config`; `read` as in `read_packed`."""
    group = _group_of(config, path)
    if not group.get("input_activations"):
        return None
    inputs = Inputs.from_config(group["input_activations"])
    if inputs.dynamic:
        return Rounding(inputs.bits, inputs.per, inputs.symmetric, standard=inputs.standard)
    part = "input_global_scale" if inputs.standard == "nvfp4" else "input_scale"
    scale, zero_point = _one_number(read, f"{stem}.{part}"), torch.zeros(1)
    with suppress(KeyError):
        zero_point = read(f"{stem}.input_zero_point").to(torch.float32).reshape(1)
    return Rounding(inputs.bits, inputs.per, inputs.symmetric, scale, zero_point, inputs.standard)


def _one_number(read: Callable[[str], Tensor], key: str) -> Float[Tensor, "1"]:
    try:
        found = read(key).to(torch.float32)
    except KeyError:
        raise InputError(f"the weights lack {key}; copy or download the folder again") from None
    if found.numel() != 1 or not 0 < float(found) < math.inf:
        raise InputError(f"{key} is no positive number; copy or download the folder again")
    return found.reshape(1)


def packed_shape(read: Callable[[str], Tensor], stem: str) -> tuple[int, int]:
    """(outputs, inputs) of one matrix; `read` as in `read_packed`."""
    try:
        out, width = (int(length) for length in read(f"{stem}.weight_shape"))
    except KeyError:
        return float_shape(read, stem)
    return out, width


def packed_stems(keys: Iterable[str]) -> tuple[str, ...]:
    """The names of the packed matrices among stored tensors."""
    found = (key.removesuffix(end) for key in keys for end in (".weight_packed", ".weight_scale") if key.endswith(end))
    return tuple(dict.fromkeys(found))


def check_parts(keys: Collection[str], folder: Path, form: str = INTEGERS) -> None:
    """Raise InputError when a tensor is missing without which a packed matrix cannot be read; form: the format of the file."""
    for stem in packed_stems(keys):
        for part in _NEEDED[form]:
            if f"{stem}.{part}" not in keys:
                raise InputError(f"{folder}: the weights lack {stem}.{part}; copy or download the folder again.")


def library_decode(tensors: Mapping[str, Tensor], stem: str, scheme: Scheme) -> Float[Tensor, "out in"]:
    """The codes as the format's own library unpacks them, times the scales, float32: the proof that others read what was meant."""
    if scheme.standard:
        return decode_by_library(tensors, stem, FORMATS[scheme.standard], weights_of(scheme.standard))
    if not scheme.packed:
        return decode_by_library(tensors, stem, BYTES, _weights(scheme))
    shape = torch.Size(tensors[f"{stem}.weight_shape"].tolist())
    codes = unpack_from_int32(tensors[f"{stem}.weight_packed"], scheme.bits, shape).to(torch.float32)
    scale = tensors[f"{stem}.weight_scale"].to(torch.float32)
    groups = codes.reshape(shape[0], scale.shape[1], -1)
    if not scheme.symmetric:
        zero_shape = torch.Size((shape[0], scale.shape[1]))
        zero_point = unpack_from_int32(tensors[f"{stem}.weight_zero_point"], scheme.bits, zero_shape, packed_dim=0)
        groups = groups - zero_point.to(torch.float32)[..., None]
    return (groups * scale[..., None]).reshape(shape)


# -- config.json -------------------------------------------------------------------------------------------------------


def quantization_config(
    schemes: Mapping[str, Scheme], ignored: Sequence[str], *, experts: Collection[str] = (), dequantize: bool = False
) -> dict[str, Any]:
    """`quantization_config` of config.json.

    schemes: by module path. ignored: paths of the other linear modules. experts: those of the paths that belong to experts, which readers
    look up by a pattern. One scheme for all is written as the target `Linear` with a list of exceptions, several are written out path by
    path; all have one format. dequantize: transformers decodes while loading; other readers pass over it.
    """
    distinct = sorted(set(schemes.values()), key=repr)
    groups = {}
    for index, scheme in enumerate(distinct):
        paths = [path for path, held in schemes.items() if held == scheme]
        targets = ["Linear"] if len(distinct) == 1 else [path for path in paths if path not in experts]
        if len(distinct) > 1 and any(path in experts for path in paths):
            targets.append(EXPERTS)
        inputs = None if scheme.inputs is None else scheme.inputs.to_config()
        groups[f"group_{index}"] = {
            "targets": targets,
            "weights": _weights(scheme),
            "input_activations": inputs,
            "output_activations": None,
        }
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": distinct[0].format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignored),
    }
    return {**config, "dequantize": True} if dequantize else config


def _weights(scheme: Scheme) -> dict[str, Any]:
    if scheme.standard:
        return weights_of(scheme.standard)
    held: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "dynamic": False}
    if scheme.group_size:
        return {**held, "strategy": "group", "group_size": scheme.group_size}
    return {**held, "strategy": "channel"}


def check_format(config: Mapping[str, Any], folder: Path) -> str:
    """The format that `quantization_config` names. Raises InputError when it is none of those that are written here."""
    if config.get("quant_method") != "compressed-tensors" or config.get("format") not in _NEEDED:
        found = f"{config.get('quant_method', 'an unnamed method')}, format {config.get('format', 'unnamed')}"
        raise InputError(
            f"{folder}: of quantized models only compressed-tensors in the formats {', '.join(_NEEDED)} is read; this is {found}"
        )
    standard = next((name for name, form in FORMATS.items() if form == config["format"]), None)
    for name, group in config.get("config_groups", {}).items() if standard else ():
        other = {key: group["weights"].get(key) for key, value in _kind_of(standard).items() if group["weights"].get(key) != value}
        if other or not _reads_inputs(group.get("input_activations"), standard):
            found = ", ".join(f"{key} {value}" for key, value in other.items()) or f"inputs like {group['input_activations']}"
            raise InputError(f"{folder}: of {config['format']} only what `float` writes is read; {name} has {found}")
    for name, group in config.get("config_groups", {}).items() if standard is None else ():
        found = group.get("input_activations")
        if found and Inputs.from_config(found).per == "group":
            raise InputError(f"{folder}: small floats with scales of groups as inputs of integers are not read; {name} has them")
    for name, group in config.get("config_groups", {}).items() if config["format"] == BYTES else ():
        weights = group["weights"]
        if (weights.get("type"), weights.get("symmetric")) != ("int", True) or weights.get("strategy") not in ("channel", "group"):
            raise InputError(f"{folder}: of {BYTES} only symmetric integers with a scale a row or group are read; {name} has {weights}")
    return str(config["format"])


def _reads_inputs(found: Mapping[str, Any] | None, standard: str) -> bool:
    """Whether inputs are left as they are, or become the same small floats as the weights."""
    try:
        return not found or Inputs.from_config(found).standard == standard
    except InputError:
        return False


def _kind_of(standard: str) -> dict[str, Any]:
    """What the weights of a standard must be described as."""
    return {key: value for key, value in weights_of(standard).items() if key in ("num_bits", "type", "strategy", "group_size")}
