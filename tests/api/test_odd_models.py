"""Models that are not as most are: widths that groups do not divide, layers of their own kind, code of their own, pickles, overflow."""

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
from tests.cli.test_bad_input import add_tokenizer, text
from tests.tiny import inputs, randomise, tiny
from thrifty import api
from thrifty.api.request import Request, prepare
from thrifty.base.errors import InputError, RunError


def written(model: Any, folder: Path) -> Path:
    randomise(model)
    model.eval().save_pretrained(folder)
    return folder


TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ODD = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, intermediate_size=72)),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**TEXT, intermediate_size=48, num_local_experts=4)),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=96, hidden_size=48, state_size=8, num_hidden_layers=2, intermediate_size=96)
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_every_number_of_bits_suits_widths_that_32_does_not_divide(name: str, tmp_path: Path) -> None:
    folder = written(ODD[name](), tmp_path / "model")
    for bits in range(2, 9):
        job = prepare(Request(folder, bits=bits, calibration={"input_ids": torch.zeros(2, 16, dtype=torch.int64)}))
        groups = {scheme.group_size for scheme in job.packing.schemes.values()}
        assert job.packing.schemes and (len(groups) == 1 or (name == "llama" and bits >= 4))
        reasons = [reason for reason in job.packing.warnings if "packed alike" in reason]
        assert not reasons
    assert api.plan(folder, bits=3, calibration=inputs("llama", 2, 16)).warnings == ()


OLD = Version(transformers.__version__) < Version("5.23")


@pytest.mark.parametrize(
    "name", ["llama", pytest.param("mamba", marks=pytest.mark.skipif(OLD, reason="transformers 5.18 reads no packed Mamba"))]
)
def test_and_transformers_reads_what_comes_out(name: str, tmp_path: Path) -> None:
    folder = written(ODD[name](), tmp_path / "model")
    rows = {"calibration": inputs("llama", 8, 16), "evaluation": inputs("llama", 2, 16, seed=1)}
    found = thrifty.compress(folder, bits=3, out=tmp_path / "out", verify="full", speed=False, **rows)
    assert found["bytes"]["after"] < 0.6 * found["bytes"]["before"] and not found["warnings"]


def test_layers_of_their_own_kind_stay_dense_and_readable(tmp_path: Path) -> None:
    """Falcon's linears are a subclass, in whose place transformers puts no packed layer."""
    config = transformers.FalconConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, multi_query=True, new_decoder_architecture=False
    )
    folder = written(transformers.FalconForCausalLM(config), tmp_path / "model")
    rows = {"calibration": inputs("llama", 8, 16), "evaluation": inputs("llama", 2, 16, seed=1)}
    found = thrifty.compress(folder, "rtn: {bits: 4}", out=tmp_path / "out", verify="full", speed=False, **rows)
    assert len(found["warnings"]) == 1 and "layer of its own kind" in found["warnings"][0]
    assert found["kl"]["value"] > 0 and {layer["bits"] for layer in found["layers"]} == {32.0}
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")(**inputs("llama", 1, 8))


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_its_own_is_run_all_the_way_where_it_is_trusted(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    (folder / "own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    references = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": references}
    (folder / "config.json").write_text(json.dumps(config))
    rows = {"calibration": inputs("llama", 8, 16), "evaluation": inputs("llama", 2, 16, seed=1)}
    found = thrifty.compress(folder, "rtn: {bits: 4}", out=tmp_path / "out", verify="full", trust_remote_code=True, **rows)
    assert found["verified"] == "full" and found["speed"]["decode_tokens_per_second"].keys() == {"before", "after"}
    model = thrifty.load(tmp_path / "out", trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert api.describe(folder, trust_remote_code=True).architecture == "OwnForCausalLM"


def test_a_tokenizer_of_its_own_is_run_where_it_is_trusted(tmp_path: Path) -> None:
    folder = add_own_tokenizer(tiny("llama", tmp_path / "model"))
    text(tmp_path / "text.txt")
    words = {"text": str(tmp_path / "text.txt"), "samples": 2, "tokens": 16}
    with pytest.raises(InputError, match="tokenizer"):
        thrifty.evaluate(folder, **words)
    assert thrifty.evaluate(folder, **words, trust_remote_code=True)["windows"] == 2
    recipe = {"evaluation": words, "steps": [{"rtn": {}}]}
    thrifty.compress(folder, recipe, out=tmp_path / "out", trust_remote_code=True)
    assert api.try_out(tmp_path / "out", "x", new_tokens=1, trust_remote_code=True)["prompt"] == "x"


def add_own_tokenizer(folder: Path) -> Path:
    """A tokenizer whose class lies beside the model."""
    add_tokenizer(folder)
    own = "from transformers import PreTrainedTokenizerFast\n\n\nclass Words(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "words.py").write_text(own)
    file = folder / "tokenizer_config.json"
    named = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["words.Words", "words.Words"]}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    return folder


def test_pickled_weights_go_all_the_way_where_they_are_allowed(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    rows = {"calibration": inputs("llama", 8, 16), "evaluation": inputs("llama", 2, 16, seed=1)}
    found = thrifty.compress(folder, "rtn: {bits: 4}", out=tmp_path / "out", allow_pickle=True, **rows)
    assert found["speed"] is not None and (tmp_path / "out" / "model.safetensors").exists()
    assert api.describe(folder, allow_pickle=True).model_type == "llama"
    assert thrifty.load(folder, allow_pickle=True).dtype == torch.float32


def test_values_that_overflow_are_told_with_the_block(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e30
    tensors["model.layers.1.mlp.gate_proj.weight"] *= 1e30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    skipping = {"steps": [{"rtn": {"bits": 4}, "skip": ["model.layers.1.*"]}]}
    for recipe, words in (
        (skipping, r"model\.layers\.1: the original's evaluation rows .* not finite"),
        ("rtn: {bits: 4}", r"model\.layers\.1\.mlp\.gate_proj: .*largest weight is .*e\+2"),
    ):
        with pytest.raises(RunError, match=words):
            thrifty.compress(folder, recipe, inputs("llama", 8, 16), evaluation=inputs("llama", 2, 16), out=tmp_path / "out", force=True)
        assert not (tmp_path / "out" / "certificate.json").exists()


def test_blocks_that_cannot_be_run_one_by_one_are_told(tmp_path: Path) -> None:
    small = {"vocab_size": 96, "num_layers": 2, "attention_heads": 4, "d_model": 64, "ffn_dim": 96, "max_position_embeddings": 64}
    albert = {"vocab_size": 96, "embedding_size": 32, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    models = {
        "xglm": transformers.XGLMForCausalLM(transformers.XGLMConfig(**small)),
        "albert": transformers.AlbertModel(transformers.AlbertConfig(**albert, intermediate_size=96)),
    }
    rows = {"calibration": inputs("llama", 4, 16), "evaluation": inputs("llama", 2, 16, seed=1)}
    for name, model in models.items():
        folder = written(model, tmp_path / name)
        with pytest.raises((RunError, InputError), match=r"not supported yet|can be compressed"):
            thrifty.compress(folder, "gptq: {bits: 4}", out=tmp_path / f"{name}-out", speed=False, **rows)


def test_rows_with_masks_of_their_own_are_refused(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    rows = inputs("llama", 4, 16)
    mask = torch.ones_like(rows["input_ids"])
    thrifty.compress(folder, "gptq: {bits: 4}", {**rows, "attention_mask": mask}, out=tmp_path / "fine", speed=False)
    mask[2, :5] = 0
    with pytest.raises(InputError, match="attention_mask differs from row to row"):
        thrifty.compress(folder, "gptq: {bits: 4}", {**rows, "attention_mask": mask}, out=tmp_path / "out")


def test_an_architecture_that_was_worked_out_says_what_was_not_tried(tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
    )
    folder = written(transformers.GPTNeoXForCausalLM(config), tmp_path / "model")
    rows = {"calibration": inputs("llama", 8, 16), "evaluation": inputs("llama", 2, 16, seed=1)}
    for verify, said in (("exact", True), ("full", False)):
        found = thrifty.compress(folder, "rtn: {bits: 4}", out=tmp_path / verify, verify=verify, speed=False, **rows)
        assert any("worked out, not declared" in warning for warning in found["warnings"]) is said


def test_a_file_that_must_be_decoded_while_loading_has_one_scheme(tmp_path: Path) -> None:
    folder = tiny("siglip", tmp_path / "model")
    recipe = {"steps": [{"rtn": {"bits": 4, "group_size": 32}, "override": {"*.fc1": {"bits": 8}}}]}
    with pytest.raises(InputError, match=r"only one bit width and group size .*: SiglipModel fills its linear layers while it is loaded"):
        thrifty.compress(folder, recipe, inputs("siglip", 2, 16), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
