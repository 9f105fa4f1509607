"""The packed format against the library that defines it, and config.json against transformers, which reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor
from transformers.utils.quantization_config import CompressedTensorsConfig

import thrifty
from tests.export.codes import encoded, packed_model
from tests.tiny import build, inputs, tiny
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded
from thrifty.core.activations import Rounding
from thrifty.export.compressed import (
    Scheme,
    check_format,
    check_parts,
    library_decode,
    pack,
    packed_bytes,
    packed_stems,
    quantization_config,
    read_packed,
    read_rounding,
    scheme_of,
)
from thrifty.models.shell import main_output

PREFIX = "block.linear"


def library_scheme(scheme: Scheme) -> QuantizationScheme:
    """The scheme as the library understands what is written into config.json."""
    written = quantization_config({PREFIX: scheme}, [])
    return QuantizationConfig.model_validate(written).config_groups["group_0"]


def library_values(tensors: dict[str, Tensor], scheme: QuantizationScheme, scale_type: torch.dtype = torch.float32) -> Tensor:
    """The matrix as the library decompresses it, its scales widened first, for it computes in their type."""
    local = {key.removeprefix(f"{PREFIX}."): tensor for key, tensor in tensors.items()}
    local["weight_scale"] = local["weight_scale"].to(scale_type)
    return PackedQuantizationCompressor.decompress(local, scheme)["weight"]


def on_disk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file gives them back."""
    return load(save(tensors))


# From 9 rows on: the library fails at zero points of several groups that fill a single word.
codes = st.builds(
    lambda seed, out, groups, group_size, whole, bits, symmetric: encoded(
        seed, out if symmetric else out + 8, groups * group_size, 0 if whole else group_size, bits, symmetric
    ),
    seed=st.integers(0, 2**31),
    out=st.integers(1, 32),
    groups=st.integers(1, 4),
    group_size=st.integers(5, 40),
    whole=st.booleans(),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
)

# -- matrices ----------------------------------------------------------------------------------------------------------


@given(code=codes)
def test_the_library_decodes_exactly_what_was_meant(code: Encoded) -> None:
    scheme, tensors = scheme_of(code), on_disk(pack(PREFIX, code))
    assert set(PackedQuantizationCompressor.compression_param_names(library_scheme(scheme))) == {
        key.removeprefix(f"{PREFIX}.") for key in tensors
    }
    assert torch.equal(library_values(tensors, library_scheme(scheme)), code.decode())
    assert torch.equal(library_decode(tensors, PREFIX, scheme), code.decode())


@given(code=codes)
def test_what_is_written_is_read(code: Encoded) -> None:
    tensors = on_disk(pack(PREFIX, code))
    found = read_packed(tensors.__getitem__, PREFIX)
    assert found.shape == code.shape and found.bits == scheme_of(code).bits
    assert found.tensors.keys() == code.tensors.keys()
    for name, tensor in code.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
    assert torch.equal(found.decode(), code.decode())
    assert packed_stems([*tensors, "block.linear.bias", "weight_packed.weight"]) == (PREFIX,)


@given(code=codes)
def test_the_bytes_are_those_that_were_promised(code: Encoded) -> None:
    tensors = pack(PREFIX, code)
    promised = packed_bytes(*code.shape, scheme_of(code), tensors[f"{PREFIX}.weight_scale"].dtype)
    assert sum(tensor.nbytes for tensor in tensors.values()) == promised


@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(16, 64, 32), (13, 96, 32), (24, 40, 0), (3, 33, 0)]),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
)
def test_what_the_library_writes_is_read(seed: int, shape: tuple[int, int, int], bits: int, symmetric: bool) -> None:
    code = encoded(seed, *shape, bits, symmetric)
    scheme = library_scheme(Scheme(bits, shape[2], symmetric))
    zero_point = code.tensors.get("zero_point", torch.zeros_like(code.tensors["scale"], dtype=torch.int8))
    given_tensors = {"weight": code.decode(), "weight_scale": code.tensors["scale"], "weight_zero_point": zero_point}
    made = PackedQuantizationCompressor.compress(given_tensors, scheme)
    tensors = on_disk({f"{PREFIX}.{name}": tensor.contiguous() for name, tensor in made.items()})
    found = read_packed(tensors.__getitem__, PREFIX)
    assert torch.equal(found.decode(), library_values(tensors, scheme)) and torch.equal(found.decode(), code.decode())


@pytest.mark.parametrize(("bits", "scale_type"), [(4, torch.float16), (8, torch.float32)])
def test_readers_that_decode_in_the_type_of_the_scales_lose_nothing(bits: int, scale_type: torch.dtype) -> None:
    """Where transformers must decode while loading: float16 scales for 4 bits, float32 scales for 8."""
    for seed in range(20):
        code = encoded(seed, 16, 128, 32, bits, symmetric=False)
        tensors = pack(PREFIX, code, (scale_type,))
        assert tensors[f"{PREFIX}.weight_scale"].dtype == scale_type
        assert torch.equal(library_values(tensors, library_scheme(scheme_of(code)), scale_type).float(), code.decode())


def test_scales_take_the_first_type_that_holds_them() -> None:
    code = encoded(0, 4, 64, 32, 4, symmetric=True)
    for value, expected in [(0.5, torch.bfloat16), (1 + 2.0**-7, torch.bfloat16), (1 + 2.0**-10, torch.float16)]:
        code.tensors["scale"].fill_(value)
        scale = pack(PREFIX, code)[f"{PREFIX}.weight_scale"]
        assert scale.dtype == expected and (scale == value).all()
    for value in (1 + 2.0**-12, (1 + 2.0**-10) * 2.0**20):
        code.tensors["scale"][2, 1] = value
        with pytest.raises(RunError, match=PREFIX):
            pack(PREFIX, code)
        assert pack(PREFIX, code, (torch.float16, torch.float32))[f"{PREFIX}.weight_scale"].dtype == torch.float32


def test_narrow_codes_lie_in_4_and_8_bit_places() -> None:
    forms = {bits: scheme_of(encoded(0, 4, 64, 32, bits, symmetric=True)).bits for bits in range(2, 9)}
    assert forms == {2: 4, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
    assert scheme_of(encoded(0, 4, 64, 0, 4, symmetric=False)) == Scheme(4, 0, False)


@given(bits=st.sampled_from([4, 8]), group_size=st.integers(0, 512), symmetric=st.booleans())
def test_schemes_survive_json(bits: int, group_size: int, symmetric: bool) -> None:
    scheme = Scheme(bits, group_size, symmetric)
    assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


def test_a_matrix_without_its_scales_or_shape_is_refused(tmp_path: Path) -> None:
    tensors = pack(PREFIX, encoded(0, 4, 64, 32, 4, symmetric=True))
    check_parts(tensors, tmp_path)
    for part in ("weight_scale", "weight_shape"):
        rest = {key: tensor for key, tensor in tensors.items() if not key.endswith(part)}
        with pytest.raises(InputError, match=rf"{PREFIX}\.{part}"):
            check_parts(rest, tmp_path)


# -- config.json -------------------------------------------------------------------------------------------------------

SCHEMES = [Scheme(bits, group_size, symmetric) for bits in (4, 8) for group_size in (0, 128) for symmetric in (True, False)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_one_scheme_is_the_target_linear_with_exceptions(scheme: Scheme) -> None:
    written = quantization_config({"a.0": scheme, "a.1": scheme}, ["lm_head", "a.2"])
    assert json.loads(json.dumps(written)) == written
    for read in (QuantizationConfig.model_validate(written), CompressedTensorsConfig(**written).quantization_config):
        assert (read.format, read.ignore, list(read.config_groups)) == ("pack-quantized", ["lm_head", "a.2"], ["group_0"])
        group = read.config_groups["group_0"]
        assert group.targets == ["Linear"] and group.input_activations is None and group.output_activations is None
        weights = group.weights
        assert (weights.num_bits, weights.symmetric, weights.dynamic, weights.type) == (scheme.bits, scheme.symmetric, False, "int")
        assert (weights.strategy, weights.group_size) == (("group", 128) if scheme.group_size else ("channel", None))


def test_several_schemes_are_written_path_by_path_and_experts_by_pattern() -> None:
    narrow, wide = Scheme(4, 32, True), Scheme(8, 0, True)
    schemes = {"b.0.q": narrow, "b.0.mlp.experts.0.up": narrow, "b.0.mlp.experts.1.up": narrow, "b.1.q": wide, "b.1.k": wide}
    written = quantization_config(schemes, ["lm_head"], experts=[path for path in schemes if "experts" in path])
    groups = QuantizationConfig.model_validate(written).config_groups
    found = {group.weights.num_bits: group.targets for group in groups.values()}
    assert found == {4: ["b.0.q", r"re:.*\.experts\.\d+\..*"], 8: ["b.1.q", "b.1.k"]}


def test_the_word_that_makes_transformers_decode_while_loading() -> None:
    scheme = {PREFIX: Scheme(4, 32, False)}
    assert "dequantize" not in quantization_config(scheme, [])
    assert CompressedTensorsConfig(**quantization_config(scheme, [], dequantize=True)).dequantize is True


def test_other_formats_are_refused(tmp_path: Path) -> None:
    check_format(quantization_config({PREFIX: Scheme(4, 32, True)}, []), tmp_path)
    for config, words in [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "compressed-tensors", "format": "naive-quantized"}, "naive-quantized"),
        ({}, "an unnamed method"),
    ]:
        with pytest.raises(InputError, match=words):
            check_format(config, tmp_path)


# -- whole models in transformers --------------------------------------------------------------------------------------

FORMS: dict[str, tuple[Callable[[str], tuple[int, int, bool]], bool]] = {
    "4 bits in groups": (lambda stem: (32, 4, True), False),
    "4 bits a row": (lambda stem: (0, 4, True), False),
    "8 bits in groups": (lambda stem: (32, 8, True), False),
    "8 bits a row": (lambda stem: (0, 8, True), False),
    "4 bits with zero points": (lambda stem: (32, 4, False), True),
    "8 bits with zero points": (lambda stem: (0, 8, False), True),
    "both widths": (lambda stem: (0, 8, True) if "down" in stem else (32, 4, True), False),
}


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_transformers_computes_with_the_decoded_matrices(form: str, tmp_path: Path) -> None:
    choose, dequantize = FORMS[form]
    held = packed_model("qwen2", tmp_path / "model", choose, dequantize)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).to(torch.float32).eval()
    reference = build("qwen2")
    for stem, code in held.items():
        weight = reference.get_submodule(stem).weight
        assert not torch.equal(weight, code.decode())
        weight.copy_(code.decode())
    rows = inputs("qwen2", 2, 24)
    torch.testing.assert_close(read(**rows).logits, reference(**rows).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "skip"), [("llama", ["*k_proj", "model.layers.1.mlp.*"]), ("clip", ["vision_model.*"]), ("bert", [])])
def test_every_linear_that_is_not_packed_is_on_the_list_of_exceptions(name: str, skip: list[str], tmp_path: Path) -> None:
    model, out = tiny(name, tmp_path / "model"), tmp_path / "out"
    step: dict[str, Any] = {"rtn": {"bits": 4, "group_size": 32}, **({"skip": skip} if skip else {})}
    thrifty.compress(model, {"steps": [step]}, inputs(name, 2, 24), evaluation=inputs(name, 2, 24, seed=1), out=out, speed=False)
    config = json.loads((out / "config.json").read_text())
    original = json.loads((model / "config.json").read_text())
    assert {key: value for key, value in config.items() if key != "quantization_config"} == original
    plain = getattr(transformers, original["architectures"][0]).from_pretrained(model)
    linears = {path for path, module in plain.named_modules() if type(module) is torch.nn.Linear}
    with safe_open(out / "model.safetensors", "pt") as file:
        stems = set(packed_stems(file.keys()))
    named = {path for path in linears if any(path.endswith(stem) or stem.endswith(path) for stem in stems)}
    assert len(named) == len(stems) > 0
    assert set(config["quantization_config"]["ignore"]) == linears - named
    assert len(config["quantization_config"]["ignore"]) == len(linears - named) > 0
    read = getattr(transformers, original["architectures"][0]).from_pretrained(out, dtype=torch.float32).eval()
    # What is not packed is as it was, so both differ and neither is far off.
    rows = inputs(name, 2, 24)
    with torch.inference_mode():
        expected, found = main_output(plain.eval()(**rows)), main_output(read(**rows))
    assert 0 < (found - expected).norm() < expected.norm()


def test_the_group_of_a_linear_is_the_one_that_says_most_of_it() -> None:
    """A name before a pattern before the class, as the library of the format has it."""
    rounded = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    groups = {
        "any": {"targets": ["Linear"], "input_activations": None},
        "pattern": {"targets": [r"re:.*\.q_proj$"], "input_activations": rounded},
        "named": {"targets": ["model.layers.1.self_attn.q_proj"], "input_activations": {**rounded, "symmetric": False}},
    }
    paths = {f"model.layers.{number}.self_attn.{name}": None for number, name in ((0, "k_proj"), (0, "q_proj"), (1, "q_proj"))}
    found = [read_rounding({"config_groups": groups}, {}.__getitem__, path, path) for path in paths]
    assert found == [None, Rounding(8, "token", True), Rounding(8, "token", False)]
