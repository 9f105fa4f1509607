"""Checkpoints of other days and other layouts hold the same model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.walking import reference, walk
from tests.tiny import build, inputs
from thrifty.base.anatomy import Part
from thrifty.models import open_model


def _folder(name: str, tmp_path: Path, folder_of, tensors: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(folder_of(name) / "config.json", folder)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_fused_experts_on_disk(name, tmp_path, folder_of, source_of):
    """A checkpoint with the names that the model has in memory."""
    folder = _folder(name, tmp_path, folder_of, dict(build(name).state_dict()))
    source = open_model(folder)
    block = source.anatomy.blocks[-1]
    inner = next(linear for linear in block.linears if linear.expert == 1 and linear.role == "down").in_features
    up = next(linear for linear in block.linears if linear.expert == 1 and linear.role == "up")
    assert (up.storage, up.part) == ("fused", Part(1, inner, 2 * inner))
    assert up.source.endswith("experts.gate_up_proj")
    rows = inputs(name, rows=2, length=10)
    assert torch.equal(walk(source, rows), walk(source_of(name), rows))
    assert not source.anatomy.missing


@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_each_expert_has_a_tensor_of_its_own(name, source_of, folder_of):
    stored = load_file(folder_of(name) / "model.safetensors")
    memory = build(name).state_dict()
    for linear in source_of(name).anatomy.linears:
        if linear.expert is None:
            continue
        assert linear.part is None
        prefix = linear.path.rpartition(".experts.")[0] + ".experts."
        fused = memory[prefix + ("down_proj" if linear.role == "down" else "gate_up_proj")][linear.expert]
        own = fused[linear.out_features :] if linear.role == "up" else fused[: linear.out_features]
        assert torch.equal(stored[linear.source], own)


@pytest.mark.parametrize(("name", "prefix"), [("bert", "bert."), ("gpt2", "transformer."), ("llama", "model.")])
def test_a_base_model_reads_a_checkpoint_with_a_head(name, prefix, tmp_path, folder_of):
    """Weights saved from a model with a head, under a config that names the base model."""
    import json

    tensors = load_file(folder_of(name) / "model.safetensors")
    folder = _folder(name, tmp_path, folder_of, {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)})
    config = json.loads((folder / "config.json").read_text())
    base = {"bert": "BertModel", "gpt2": "GPT2Model", "llama": "LlamaModel"}[name]
    if name == "bert":
        model = build(name).bert
        extra = {f"bert.pooler.dense.{leaf}": torch.randn(shape) for leaf, shape in (("weight", (64, 64)), ("bias", (64,)))}
        del model
        save_file({**load_file(folder / "model.safetensors"), **extra}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [base]}))
    rows = inputs(name, rows=2, length=8)
    torch.testing.assert_close(walk(open_model(folder), rows), reference(folder, rows))


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("qwen2", "model.")])
def test_a_head_reads_a_checkpoint_of_the_base_model(name, prefix, tmp_path, folder_of, source_of):
    """As the original GPT-2 files are: no prefix, the head tied to the embeddings."""
    tensors = load_file(folder_of(name) / "model.safetensors")
    folder = _folder(name, tmp_path, folder_of, {key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    rows = inputs(name, rows=2, length=8)
    source = open_model(folder)
    assert not source.names.unused
    assert torch.equal(walk(source, rows), walk(source_of(name), rows))


def test_old_bert_norm_names(tmp_path, folder_of, source_of):
    tensors = load_file(folder_of("bert") / "model.safetensors")
    renamed = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in tensors.items()
    }
    assert set(renamed) != set(tensors)
    rows = inputs("bert", rows=2, length=8)
    source = open_model(_folder("bert", tmp_path, folder_of, renamed))
    assert torch.equal(walk(source, rows), walk(source_of("bert"), rows))
    assert source.disk_name(source.anatomy.blocks[0].norms[0].path + ".weight").endswith("LayerNorm.gamma")


def test_a_tied_head_that_lies_on_disk_too(tmp_path, folder_of, source_of):
    tensors = load_file(folder_of("qwen2") / "model.safetensors")
    folder = _folder("qwen2", tmp_path, folder_of, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    rows = inputs("qwen2", rows=2, length=8)
    source = open_model(folder)
    assert source.disk_name("lm_head.weight") == "lm_head.weight"
    assert torch.equal(walk(source, rows), walk(source_of("qwen2"), rows))


def test_tensors_that_the_model_has_no_place_for(tmp_path, folder_of, source_of):
    """Old Llama checkpoints carry the rotary frequencies."""
    tensors = load_file(folder_of("llama") / "model.safetensors")
    extra = {f"model.layers.{index}.self_attn.rotary_emb.inv_freq": torch.ones(8) for index in range(2)}
    source = open_model(_folder("llama", tmp_path, folder_of, {**tensors, **extra}))
    assert set(source.names.unused) == set(extra)
    assert set(extra) <= set(source.shell_keys())
    rows = inputs("llama", rows=2, length=8)
    assert torch.equal(walk(source, rows), walk(source_of("llama"), rows))
