"""Inputs that become small floats while the model runs: as transformers and our runtime do it, in both formats that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file

import thrifty
from tests.tiny import inputs, tiny
from thrifty.base.errors import InputError, RunError
from thrifty.core.activations import Histogram
from thrifty.core.scaled import STANDARDS
from thrifty.export.compressed_floats import inputs_of
from thrifty.measure.certificate import Certificate
from thrifty.models.shell import main_output
from thrifty.pipeline import packing
from thrifty.weights.activation.float_inputs import FloatInputs
from thrifty.weights.target.float import SmallFloat

LENGTH = 24
PER_ROW = {"fp8 token": FloatInputs(), "fp8 tensor": FloatInputs(per="tensor"), "fp8 fixed": FloatInputs(per="fixed")}
IN_GROUPS = {name: FloatInputs(name) for name in ("mxfp8", "mxfp4", "nvfp4")}
ALL = {**PER_ROW, **IN_GROUPS}


def recipe(activation: FloatInputs, weights: str = "") -> dict[str, Any]:
    standard = STANDARDS[weights or activation.format]
    target = {"float": SmallFloat(standard.numbers, standard.group_size, standard.scale).settings()}
    return {"steps": [{"solve": {"by": "round", "into": target, "activation": {"float_inputs": activation.settings()}}}]}


def run(folder: Path, out: Path, steps: dict[str, Any], architecture: str = "llama", **words: Any) -> dict[str, Any]:
    rows = {"calibration": inputs(architecture, 4, LENGTH), "evaluation": inputs(architecture, 2, LENGTH, seed=1)}
    return thrifty.compress(folder, steps, out=out, speed=False, **rows, **words)


def logits(model: torch.nn.Module, architecture: str = "llama") -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(**inputs(architecture, 2, LENGTH, seed=2)))


def plain(ours: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """transformers alone, computing in float32 with the matrices as it decodes them."""
    model = type(ours).from_pretrained(folder, dtype=torch.float32).eval()
    model.hf_quantizer.compressor.decompress_model(model)
    return model.to(torch.float32)


def half(folder: Path) -> Path:
    """The same model in bfloat16."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "vit"])
@pytest.mark.parametrize("name", PER_ROW)
def test_transformers_and_our_runtime_round_as_the_walk_does(name: str, architecture: str, tmp_path: Path) -> None:
    folder = tiny(architecture, tmp_path / "model")
    run(folder, tmp_path / "out", recipe(ALL[name]), architecture, verify="full")
    assert {layer.details["input_bits"] for layer in Certificate.read(tmp_path / "out").layers} == {8.0}
    ours = thrifty.load(tmp_path / "out", torch.float32)
    found = logits(ours, architecture)
    # without a word about decoding: FP8 runs in plain transformers in any type
    loaded = type(ours).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(found, logits(loaded, architecture), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(thrifty.load(folder, torch.float32), architecture), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(Version(transformers.__version__) < packing.FLOATS_SINCE, reason="an older transformers gets these dense")
@pytest.mark.parametrize("name", IN_GROUPS)
def test_models_in_bfloat16_hold_floats_in_groups(name: str, tmp_path: Path) -> None:
    folder = half(tiny("llama", tmp_path / "model"))
    run(folder, tmp_path / "out", recipe(ALL[name]), verify="full")
    ours = thrifty.load(tmp_path / "out", torch.float32)
    torch.testing.assert_close(logits(ours), logits(plain(ours, tmp_path / "out")), rtol=1e-4, atol=1e-4)
    # in its own type, as anyone loads it, transformers computes the same but for the bits that bfloat16 lacks
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.dtype == torch.bfloat16
    exact, near = logits(ours), logits(loaded).float()
    unrounded = logits(thrifty.load(folder, torch.float32))
    assert float((near - exact).norm()) < 0.8 * float((near - unrounded).norm())


@pytest.mark.parametrize("name", ALL)
def test_the_container_holds_them_beside_any_weights(name: str, tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    steps = recipe(ALL[name])
    steps["steps"][0]["solve"]["into"] = {"int": {"bits": 4, "group_size": 32}}
    run(folder, tmp_path / "out", steps, format="thrifty", verify="full")
    ours = thrifty.load(tmp_path / "out", torch.float32)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(ours), logits(loaded), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(ours), logits(thrifty.load(folder, torch.float32)), rtol=1e-4, atol=1e-4)


def test_the_file_is_the_one_that_others_write(tmp_path: Path) -> None:
    """Names, types and settings of llm-compressor's FP8_DYNAMIC and FP8 (with a scale a row for weights)."""
    folder = tiny("llama", tmp_path / "model")
    stem = "model.layers.0.self_attn.q_proj"
    for name, expected in (
        ("fp8 token", {"strategy": "token", "dynamic": True}),
        ("fp8 tensor", {"strategy": "tensor", "dynamic": True}),
        ("fp8 fixed", {"strategy": "tensor", "dynamic": False}),
    ):
        found = run(folder, tmp_path / name, recipe(ALL[name]))
        config = json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        assert config["format"] == "float-quantized" and "dequantize" not in config
        (group,) = config["config_groups"].values()
        assert group["input_activations"] == {"num_bits": 8, "type": "float", "symmetric": True, **expected}
        assert group["weights"] == {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "channel"}
        tensors = load_file(tmp_path / name / "model.safetensors")
        parts = {key.removeprefix(f"{stem}."): tensor for key, tensor in tensors.items() if key.startswith(f"{stem}.")}
        assert parts["weight"].dtype == torch.float8_e4m3fn and parts["weight_scale"].shape == (64, 1)
        assert set(parts) == {"weight", "weight_scale"} | ({"input_scale"} if name == "fp8 fixed" else set())
        certificate = json.loads((tmp_path / name / "certificate.json").read_text())
        weights = {one["name"]: one["weights"] for one in certificate["layers"]}
        held = sum(tensor.nbytes for key, tensor in tensors.items() if key.rsplit(".", 1)[0] in weights)
        assert found["bits_per_weight"] == pytest.approx(8 * held / sum(weights.values()))


@pytest.mark.parametrize("name", IN_GROUPS)
def test_a_model_in_float32_is_refused(name: str, tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    with pytest.raises(InputError, match=f"(decodes {name} to bfloat16 when the model runs|stored dense).*leave `activation` out"):
        run(folder, tmp_path / "out", recipe(ALL[name]))
    assert not (tmp_path / "out").exists()


def test_words_for_what_no_reader_does(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    with pytest.raises(InputError, match="fp8 with integers"):
        steps = recipe(ALL["fp8 token"])
        steps["steps"][0]["solve"]["into"] = {"int": {"bits": 8, "group_size": 0}}
        run(folder, tmp_path / "out", steps)
    with pytest.raises(InputError, match="nvfp4 with fp8"):
        run(folder, tmp_path / "out", recipe(ALL["nvfp4"], "fp8"))
    with pytest.raises(InputError, match="scales of groups"):
        FloatInputs("mxfp4", "fixed")
    with pytest.raises(RunError, match="need calibration inputs"):
        FloatInputs("nvfp4").fit(None)
    assert not (tmp_path / "out").exists()


def test_fixed_scales_are_those_of_the_largest_input() -> None:
    seen = Histogram.of(torch.tensor([[-7.0, 3.0, 1.0]]))
    assert float(FloatInputs(per="fixed").fit(seen).scale) == pytest.approx(7 / 448, rel=2**-8)
    assert float(FloatInputs("nvfp4").fit(seen).scale) == pytest.approx(448 * 6 / 7)
    nothing = Histogram.of(torch.zeros(1, 3))
    for activation in (FloatInputs(per="fixed"), FloatInputs("nvfp4")):
        assert torch.equal(activation.fit(nothing)(torch.zeros(1, 32)), torch.zeros(1, 32))


def test_a_norm_with_bias_is_rewritten_for_float_inputs(tmp_path: Path) -> None:
    """What `coqmoe` asks of inputs is their bits, which floats have, too."""
    folder = tiny("vit", tmp_path / "model")
    steps = [{"coqmoe": {}}, *recipe(FloatInputs())["steps"]]
    found = run(folder, tmp_path / "out", {"steps": steps}, "vit")
    assert found["layers"] and all("coqmoe" in layer["method"] or "solve" in layer["method"] for layer in found["layers"])


def test_a_fixed_scale_that_is_gone_or_no_number_is_a_sentence(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    run(folder, tmp_path / "out", recipe(FloatInputs(per="fixed")))
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("input_scale"))
    for broken, said in (({key: torch.zeros(1)}, "is no positive number"), ({key: torch.ones(2)}, "is no positive number"), ({}, "lack")):
        save_file({name: value for name, value in tensors.items() if name != key} | broken, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=said):
            thrifty.load(tmp_path / "out")


def test_groups_of_float_inputs_beside_integers_are_refused(tmp_path: Path) -> None:
    """No width is checked for them there; beside the same floats it was when they were written."""
    folder = tiny("llama", tmp_path / "model")
    steps = [{"rtn": {"bits": 8, "group_size": 0, "activation": {"dynamic": {}}}}]
    run(folder, tmp_path / "out", {"steps": steps})
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = inputs_of("mxfp4")
    file.write_text(json.dumps(config, default=str))
    with pytest.raises(InputError, match="small floats with scales of groups as inputs of integers are not read"):
        thrifty.load(tmp_path / "out")
