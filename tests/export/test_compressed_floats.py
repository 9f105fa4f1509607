"""Small floats in the formats of compressed-tensors: against the library that defines them, and against transformers, which loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from safetensors.torch import load, load_file, save
from torch import Tensor

import thrifty
from tests.tiny import inputs, tiny
from tests.weights.problems import draw
from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.scaled import STANDARDS
from thrifty.export import dense, gguf
from thrifty.export.compressed import (
    check_format,
    check_parts,
    library_decode,
    pack,
    packed_bytes,
    packed_shape,
    packed_stems,
    quantization_config,
    read_packed,
    scheme_of,
)
from thrifty.export.compressed_floats import FORMATS, library_has
from thrifty.models.shell import main_output
from thrifty.pipeline import packing
from thrifty.runtime.linear import PackedLinear
from thrifty.weights.target.float import SmallFloat

STEM = "block.linear"
NAMES = tuple(name for name in STANDARDS if library_has(name))


def target(name: str) -> SmallFloat:
    standard = STANDARDS[name]
    return SmallFloat(standard.numbers, standard.group_size, standard.scale)


def encoded(seed: int, out: int, width: int, name: str, spread: float = 0.05) -> Encoded:
    values = draw(seed, out, width, dtype=torch.float32) * spread
    values[0, : width // 2] = 0
    points = target(name).fit(values)
    return points.encode(points.project(values))


def on_disk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file gives them back."""
    return load(save(tensors))


codes = st.builds(
    encoded,
    seed=st.integers(0, 2**31),
    out=st.integers(1, 20),
    width=st.sampled_from([32, 64, 160]),
    name=st.sampled_from(NAMES),
    spread=st.sampled_from([1e-5, 0.05, 40.0]),
)


# -- matrices ----------------------------------------------------------------------------------------------------------


@given(code=codes, scale_type=st.sampled_from([torch.bfloat16, torch.float32]))
def test_the_library_and_we_read_exactly_what_was_meant(code: Encoded, scale_type: torch.dtype) -> None:
    tensors = on_disk(pack(STEM, code, [scale_type]))
    assert torch.equal(library_decode(tensors, STEM, scheme_of(code)), code.decode())
    read = read_packed(tensors.__getitem__, STEM)
    assert torch.equal(read.decode(), code.decode()) and torch.equal(read.tensors["codes"], code.tensors["codes"])
    assert (read.standard, read.bits, read.group_size, read.shape) == (code.standard, code.bits, code.group_size, code.shape)
    assert packed_shape(tensors.__getitem__, STEM) == code.shape and packed_stems(tensors) == (STEM,)
    assert sum(tensor.nbytes for tensor in tensors.values()) == packed_bytes(*code.shape, scheme_of(code), scale_type)
    assert on_disk(pack(STEM, read, [scale_type])).keys() == tensors.keys()


@pytest.mark.parametrize(("name", "bits"), [("nvfp4", 4.5), ("mxfp4", 4.25), ("mxfp6", 6.25), ("mxfp8", 8.25), ("fp8", 8 + 16 / 512)])
def test_the_bytes_are_those_of_the_standard(name: str, bits: float) -> None:
    code = encoded(1, 256, 512, name)
    stored = packed_bytes(256, 512, scheme_of(code))
    assert 8 * (stored - 4 * (name == "nvfp4")) / (256 * 512) == bits


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_matrix_are_packed_alone(name: str) -> None:
    code = encoded(2, 24, 64, name)
    part = read_packed(on_disk(pack(STEM, code.rows(8, 20))).__getitem__, STEM)
    assert torch.equal(part.decode(), code.decode()[8:20])


@pytest.mark.parametrize("name", NAMES)
def test_every_code_is_stored(name: str) -> None:
    code = encoded(3, 4, 256 if STANDARDS[name].numbers == "e4m3" else 64, name)
    known = ~code.tensors["numbers"].isnan()
    every = torch.arange(code.tensors["numbers"].numel(), dtype=torch.uint8)[known]
    code.tensors["codes"][0, : every.numel()] = every
    tensors = on_disk(pack(STEM, code))
    assert torch.equal(read_packed(tensors.__getitem__, STEM).tensors["codes"], code.tensors["codes"])
    assert torch.equal(library_decode(tensors, STEM, scheme_of(code)), code.decode())


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_part_is_named(name: str, tmp_path: Path) -> None:
    tensors = pack(STEM, encoded(4, 8, 32, name))
    check_parts(tensors, tmp_path, FORMATS[name])
    for part in tensors:
        rest = [key for key in tensors if key != part]
        if packed_stems(rest):
            with pytest.raises(InputError, match=f"the weights lack {part}"):
                check_parts(rest, tmp_path, FORMATS[name])


@pytest.mark.parametrize("name", NAMES)
def test_other_floats_are_refused(name: str, tmp_path: Path) -> None:
    config = quantization_config({STEM: scheme_of(encoded(1, 4, 32, name))}, [])
    assert check_format(config, tmp_path) == FORMATS[name]
    group = config["config_groups"]["group_0"]
    for changed in ({"weights": {**group["weights"], "strategy": "tensor"}}, {"input_activations": {"num_bits": 8, "type": "float"}}):
        with pytest.raises(InputError, match=f"of {FORMATS[name]} only what `float` writes is read; group_0 has (strategy tensor|inputs)"):
            check_format({**config, "config_groups": {"group_0": {**group, **changed}}}, tmp_path)


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_multiplies_by_what_the_codes_stand_for(name: str, dtype: torch.dtype) -> None:
    code = encoded(5, 32, 64, name)
    layer = PackedLinear(code, bias=False, dtype=dtype)
    rows = draw(6, 3, 64, dtype=torch.float32).to(dtype)
    assert torch.equal(layer(rows), rows @ code.decode().to(dtype).T)
    held = sum(buffer.nbytes for buffer_name, buffer in layer.named_buffers() if buffer_name == "codes")
    assert held == 32 * 4 * -(-64 // (32 // int(code.bits)))  # whole codes in each word


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tiny Llama in one of the formats."""
    if request.param != "fp8" and Version(transformers.__version__) < packing.FLOATS_SINCE:
        pytest.skip(f"transformers before {packing.FLOATS_SINCE} does not read this, so it is not written")
    base = tmp_path_factory.mktemp(request.param)
    compress(tiny("llama", base / "model"), base / "out", [into(request.param)])
    return request.param, base / "out"


def into(name: str, **more: Any) -> dict[str, Any]:
    return {"solve": {"by": "obs", "into": {"float": target(name).settings()}}, **more}


def compress(model: Path, out: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    rows = {"calibration": inputs("llama", 4, 24), "evaluation": inputs("llama", 2, 24, seed=1)}
    return thrifty.compress(model, {"steps": steps}, out=out, speed=False, **rows)


def test_transformers_and_our_runtime_compute_with_the_decoded_matrices(result: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = result
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert written["format"] == FORMATS[name] and written.get("dequantize", False) == (name != "fp8")
    dense.write(folder, tmp_path / "dense")
    rows = inputs("llama", 2, 24, seed=2)
    with torch.no_grad():
        found = [
            main_output(model(**rows))
            for model in (
                transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval(),
                transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
                thrifty.load(folder, dtype=torch.float32),
            )
        ]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-5)


def test_what_is_stored_is_what_is_said(result: tuple[str, Path]) -> None:
    _, folder = result
    certificate = json.loads((folder / "certificate.json").read_text())
    stored = {key: tensor.nbytes for key, tensor in load_file(folder / "model.safetensors").items()}
    matrices = {layer["name"]: layer for layer in certificate["layers"]}
    held = sum(size for key, size in stored.items() if key.rsplit(".", 1)[0] in matrices)
    weights = sum(layer["weights"] for layer in matrices.values())
    assert certificate["bits_per_weight"] == pytest.approx(8 * held / weights)
    assert not any(layer["simulated"] for layer in matrices.values()) and not certificate["warnings"]


def test_gguf_is_not_written(result: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds small floats, for which GGUF is not written"):
        gguf.write(result[1], tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_an_older_transformers_gets_plain_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "FLOATS_SINCE", Version("99"))
    folder = tiny("llama", tmp_path / "model")
    for name in ("fp8", "mxfp4"):
        found = compress(folder, tmp_path / name, [into(name)])
        said = [warning for warning in found["warnings"] if "transformers before 99" in warning]
        assert bool(said) == ("quantization_config" not in json.loads((tmp_path / name / "config.json").read_text())) == (name == "mxfp4")


def test_a_file_holds_one_format(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    integers = {"solve": {"by": "round", "into": {"int": {"bits": 8, "group_size": 0}}}, "only": ["*.down_proj"]}
    with pytest.raises(InputError, match=r"several \(float-quantized, pack-quantized\); use one of them everywhere"):
        compress(folder, tmp_path / "out", [into("fp8", skip=["*.down_proj"]), integers])
    with pytest.raises(InputError, match=r"several \(mxfp4-pack-quantized, mxfp8-quantized\)"):
        compress(folder, tmp_path / "out", [into("mxfp4", skip=["*.down_proj"]), into("mxfp8", only=["*.down_proj"])])
    assert not (tmp_path / "out").exists()
