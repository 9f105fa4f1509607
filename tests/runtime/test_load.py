"""Loaded results against plain transformers on the same folder, and against the library of the format."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import thrifty
from tests.export.codes import change_config, packed_model
from tests.runtime.kernels import needs_kernels
from tests.tiny import inputs, tiny
from thrifty.base.errors import InputError, RunError
from thrifty.export.compressed import Scheme, library_decode, packed_stems, scheme_of
from thrifty.models.shell import main_output
from thrifty.runtime.linear import FEW_TOKENS, PackedLinear
from thrifty.runtime.load import PackedFolder

LENGTH = 24
GENERATION = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": 1.25}


@dataclass(frozen=True)
class Case:
    """A tiny model and the steps that compress it."""

    model: str
    steps: list[dict[str, Any]]


CASES = {
    "symmetric": Case("llama", [{"rtn": {"bits": 4, "group_size": 32, "symmetric": True}}]),
    "biases and tied head": Case("qwen2", [{"rtn": {"bits": 4, "group_size": 32, "symmetric": True}}]),
    "zero points": Case("qwen2", [{"rtn": {"bits": 4, "group_size": 32, "symmetric": False}}]),
    "eight bits a row": Case("llama", [{"rtn": {"bits": 8, "group_size": 0}}]),
    "three bits": Case("mistral", [{"rtn": {"bits": 3, "group_size": 32}}]),
    "two widths": Case(
        "llama", [{"rtn": {"bits": 8, "group_size": 0}, "only": ["*down_proj"]}, {"rtn": {"bits": 4}, "skip": ["*down_proj"]}]
    ),
    "experts": Case("qwen3_moe", [{"rtn": {"bits": 4, "group_size": 32}}]),
    "masked": Case("bert", [{"rtn": {"bits": 4, "group_size": 32}}]),
}


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The result of a case, with a generation config of its own."""
    root = tmp_path_factory.mktemp("results")

    def get(name: str) -> Path:
        case, out = CASES[name], root / name
        if not out.exists():
            model = tiny(case.model, root / f"{name} model")
            if (model / "generation_config.json").exists():
                (model / "generation_config.json").write_text(json.dumps(GENERATION))
            rows = inputs(case.model, 2, LENGTH)
            evaluation = inputs(case.model, 2, LENGTH, seed=1)
            thrifty.compress(model, {"steps": case.steps}, rows, evaluation=evaluation, out=out, speed=False)
        return out

    return get


def plain(folder: Path) -> Any:
    """What transformers makes of a folder, float32."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, PackedLinear)}


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_outputs_are_those_of_transformers(name: str, result_of: Callable[[str], Path]) -> None:
    folder = result_of(name)
    rows = inputs(CASES[name].model, 3, LENGTH, seed=2)
    ours = thrifty.load(folder, torch.float32)
    assert not ours.training and len(packed_layers(ours)) >= 8
    expected, found = main_output(plain(folder)(**rows)), main_output(ours(**rows))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_every_packed_matrix_that_is_a_linear_layer_stays_packed(name: str, result_of: Callable[[str], Path]) -> None:
    folder = result_of(name)
    stems = packed_stems(load_file(folder / "model.safetensors"))
    experts = [stem for stem in stems if ".experts." in stem]
    assert bool(experts) == (name == "experts")
    ours = thrifty.load(folder, torch.float32)
    assert len(packed_layers(ours)) == len(stems) - len(experts) > 0
    dense = sum(layer.in_features * layer.out_features * 4 for layer in packed_layers(ours).values())
    held = sum(tensor.nbytes for layer in packed_layers(ours).values() for tensor in (*layer.parameters(), *layer.buffers()))
    assert held < dense / 2
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("name", CASES)
def test_decoded_weights_are_those_of_the_library_of_the_format(name: str, result_of: Callable[[str], Path]) -> None:
    folder = result_of(name)
    tensors = load_file(folder / "model.safetensors")
    packed = PackedFolder(folder, json.loads((folder / "config.json").read_text())["quantization_config"])
    stems = packed_stems(tensors)
    assert stems
    for stem in stems:
        # A file whose rows need as many words as 4-bit places take holds 4-bit places.
        bits = 4 if tensors[f"{stem}.weight_packed"].shape[1] * 8 == tensors[f"{stem}.weight_shape"][1] else 8
        scheme = Scheme(bits, 0, f"{stem}.weight_zero_point" not in tensors)
        assert (scheme_of(packed.encoded(stem)).bits, scheme_of(packed.encoded(stem)).symmetric) == (bits, scheme.symmetric)
        expected = library_decode(tensors, stem, scheme)
        assert torch.equal(packed.source.read(f"{stem}.weight"), expected)
    others = [key for key in tensors if key in packed.source.tensors]
    assert others and all(torch.equal(packed.source.read(key), tensors[key]) for key in others)


@torch.inference_mode()
@needs_kernels
def test_by_default_it_computes_in_bfloat16_with_the_kernels(result_of: Callable[[str], Path]) -> None:
    folder = result_of("biases and tied head")
    fast, precise = thrifty.load(folder), thrifty.load(folder, torch.float32)
    assert fast.dtype == torch.bfloat16 and {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    assert all(layer.kernel for layer in packed_layers(fast).values())
    assert fast.lm_head.weight is fast.model.embed_tokens.weight
    for rows in (inputs("qwen2", 1, FEW_TOKENS), inputs("qwen2", 2, LENGTH)):
        expected = precise(**rows).logits
        # bfloat16 and 8-bit inputs lose about a hundredth in every product, and two blocks of them are a few hundredths.
        assert (fast(**rows).logits.float() - expected).norm() < 0.05 * expected.norm()


def test_copies_of_a_loaded_model_give_the_same(result_of: Callable[[str], Path]) -> None:
    ours = thrifty.load(result_of("symmetric"))
    rows = inputs("llama", 2, LENGTH)
    assert torch.equal(copy.deepcopy(ours)(**rows).logits, ours(**rows).logits)


def test_parts_of_a_matrix_may_lie_in_several_shards(result_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = result_of("zero points")
    tensors = load_file(folder / "model.safetensors")
    keys = sorted(tensors)
    files = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for file, names in files.items():
        save_file({key: tensors[key] for key in names}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {key: file for file, names in files.items() for key in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    rows = inputs("qwen2", 2, LENGTH)
    assert torch.equal(thrifty.load(tmp_path, torch.float32)(**rows).logits, thrifty.load(folder, torch.float32)(**rows).logits)


# -- generating text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["symmetric", "zero points", "experts"])
@torch.inference_mode()
def test_generated_tokens_are_those_of_transformers(name: str, result_of: Callable[[str], Path]) -> None:
    folder = result_of(name)
    prompt = inputs(CASES[name].model, 2, 9)
    ours, reference = thrifty.load(folder, torch.float32), plain(folder)
    assert ours.generation_config.max_new_tokens == GENERATION["max_new_tokens"]
    assert ours.generation_config.repetition_penalty == GENERATION["repetition_penalty"]
    assert ours.config.use_cache is True
    found = ours.generate(**prompt)
    assert found.shape == (2, 9 + GENERATION["max_new_tokens"])
    assert torch.equal(found, reference.generate(**prompt))


@torch.inference_mode()
def test_one_token_at_a_time_with_the_kernels_is_close_to_all_at_once(result_of: Callable[[str], Path]) -> None:
    ours = thrifty.load(result_of("symmetric"))
    row = inputs("llama", 1, LENGTH)["input_ids"]
    cache = transformers.DynamicCache()
    steps = [ours(input_ids=row[:, at : at + 1], past_key_values=cache, use_cache=True).logits for at in range(LENGTH)]
    whole = ours(input_ids=row).logits.float()
    assert (torch.cat(steps, 1).float() - whole).norm() < 0.05 * whole.norm()


# -- dense folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@torch.inference_mode()
def test_a_dense_folder(dtype: torch.dtype | None, tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    ours = thrifty.load(str(folder), dtype)
    rows = inputs("llama", 2, LENGTH)
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32).eval()
    assert ours.dtype == (dtype or torch.float32) and not packed_layers(ours)
    torch.testing.assert_close(ours(**rows).logits, expected(**rows).logits)
    saved = tmp_path / "saved"
    ours.save_pretrained(saved)
    assert load_file(saved / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_packed_weights_are_not_saved_without_their_codes(result_of: Callable[[str], Path], tmp_path: Path) -> None:
    ours = thrifty.load(result_of("symmetric"))
    for save in (ours.state_dict, copy.deepcopy(ours).state_dict, lambda: ours.save_pretrained(tmp_path / "saved")):
        with pytest.raises(RunError, match="copy the folder"):
            save()
    assert not list(tmp_path.rglob("*.safetensors"))


def folder_with(path: Path, config: str) -> Path:
    path.mkdir()
    (path / "config.json").write_text(config)
    return path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "model_type"),
        ('"quantization_config"', "model_type"),
        ('{"model_type": "llama", "quantization_config": "gptq"}', "already quantized"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}', "gptq"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack"}}', "nvfp4-pack"),
    ],
)
def test_configs_that_are_refused(config: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        thrifty.load(folder_with(tmp_path / "model", config))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        thrifty.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        thrifty.load(tmp_path / "empty")


@pytest.mark.parametrize("part", ["weight_scale", "weight_shape"])
def test_a_part_that_is_missing(part: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    packed_model("llama", folder, lambda stem: (32, 4, True))
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith(part))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=name):
        thrifty.load(folder)


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    packed_model("llama", folder, lambda stem: (32, 4, True))
    with pytest.raises(InputError, match="nosuch"):
        thrifty.load(change_config(folder, model_type="nosuch"))
