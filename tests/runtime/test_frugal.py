"""Models loaded within a budget: the same outputs as with everything in memory, whatever is left on disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import thrifty
from tests.export.codes import packed_model
from tests.tiny import inputs, tiny
from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.models.shell import main_output
from thrifty.runtime import budget, frugal, rows, spill
from thrifty.runtime.budget import Parts, Placement, peak
from thrifty.runtime.linear import PackedLinear
from thrifty.runtime.rows import DiskEmbedding, DiskHead

ARCHITECTURES = ["llama", "qwen3", "gpt2", "gemma2", "gemma3", "qwen2", "mixtral", "opt"]
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "repetition_penalty": 1.3}
EVERYTHING = Placement(embedding=True, head=True, kept=6, blocks=2)


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Steps that models of a hundred kilobytes take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "SPILL_STEP", 4)
        patch.setattr(budget, "TABLE_BYTES", 1 << 10)
        patch.setattr(rows, "TABLE_BYTES", 1 << 14)
        yield


def placed(monkeypatch: pytest.MonkeyPatch, placement: Placement) -> list[Parts]:
    """Let everything be placed like that; returns the parts that were asked about."""
    asked: list[Parts] = []

    def place(_: int, parts: Parts) -> Placement:
        asked.append(parts)
        return placement

    monkeypatch.setattr(frugal, "place", place)
    return asked


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_the_same_logits_and_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(name, tmp_path)
    whole = thrifty.load(folder)
    row = inputs(name, 2, 21)
    logits, tokens = whole(**row).logits, whole.generate(**row, **GREEDY)
    for placement in (Placement(embedding=True), Placement(kept=6), Placement(blocks=2), EVERYTHING):
        placed(monkeypatch, placement)
        ours = thrifty.load(folder, memory="1GB")
        assert isinstance(ours.get_input_embeddings(), DiskEmbedding) == placement.embedding
        tied = placement.embedding and whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
        assert isinstance(ours.get_output_embeddings(), DiskHead) == (placement.head or tied)
        assert torch.equal(ours(**row).logits, logits)
        assert torch.equal(ours.generate(**row, **GREEDY), tokens)
        assert ours.placement == placement and ours.device.type == "cpu" and ours.dtype == whole.dtype


@pytest.mark.parametrize("name", ["bert", "vit", "mamba", "llava", "clip"])
@torch.inference_mode()
def test_models_of_other_kinds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(name, tmp_path)
    row = inputs(name, 2, 11)
    parts = placed(monkeypatch, replace(EVERYTHING, kept=None))
    ours = thrifty.load(folder, memory="1GB")
    assert torch.equal(main_output(ours(**row)), main_output(thrifty.load(folder)(**row)))
    assert bool(parts[0].cache) == (name == "llava") and bool(parts[0].embedding) == (name not in ("vit", "clip"))


@torch.inference_mode()
def test_another_type_than_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llama", tmp_path)
    placed(monkeypatch, EVERYTHING)
    row = inputs("llama", 2, 21)
    ours, whole = thrifty.load(folder, torch.bfloat16, memory="1GB"), thrifty.load(folder, torch.bfloat16)
    assert torch.equal(ours(**row).logits, whole(**row).logits)
    assert torch.equal(copy.deepcopy(ours)(**row).logits, whole(**row).logits)


FORMS = {"four bits": (32, 4, True), "zero points": (32, 4, False), "eight bits a row": (0, 8, True), "decoded": (16, 8, False)}


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_packed_weights_stay_packed_on_disk(form: str, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_model("llama", tmp_path, lambda stem: FORMS[form])
    parts = placed(monkeypatch, EVERYTHING)
    whole, ours = thrifty.load(tmp_path, dtype), thrifty.load(tmp_path, dtype, memory="1GB")
    for count in (1, 2, 24):
        row = inputs("llama", 1, count)
        assert torch.equal(ours(**row).logits, whole(**row).logits)
    row = inputs("llama", 2, 9)
    assert torch.equal(ours.generate(**row, **GREEDY), whole.generate(**row, **GREEDY))
    held = [tensor for block in whole.model.layers for tensor in (*block.parameters(), *block.buffers())]
    assert sum(parts[0].blocks) == sum(tensor.nbytes for tensor in held)
    layers = [module for module in ours.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == 14 and not any(layer.codes.numel() for layer in layers if "codes" in layer._buffers)


# -- the budget --------------------------------------------------------------------------------------------------------


def bytes_of(model: nn.Module) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_the_parts_are_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(name, tmp_path)
    asked = placed(monkeypatch, Placement())
    model = thrifty.load(folder, memory="1GB", tokens=50)
    parts = asked[0]
    assert parts.fixed + parts.embedding + parts.head + sum(parts.blocks) == bytes_of(model)
    cache = model(torch.ones(1, 50, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # of a sliding window, one token less than its size is held
    window = sum(layer.keys[:, :, :1].nbytes * 2 for layer in cache.layers if layer.is_sliding)
    assert parts.tokens == 50 and sum(parts.cache) * 50 + parts.cache_fixed == held + window


@torch.inference_mode()
def test_a_budget_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six blocks, so that two places are less than all of them."""
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4, max_position_embeddings=256
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        asked = placed(patch, Placement())
        thrifty.load(tmp_path, memory="1GB")
    monkeypatch.setattr(frugal, "rss_bytes", lambda: 0)
    parts = replace(asked[0], process=0)
    row = inputs("llama", 1, 40)
    expected = thrifty.load(tmp_path)(**row).logits
    notes: list[events.Event] = []
    for step in (Placement(), Placement(embedding=True), Placement(embedding=True, kept=128, blocks=4)):
        memory = peak(step, parts)
        with events.listening(notes.append):
            ours = thrifty.load(tmp_path, memory=memory)
        assert ours.placement.bytes <= memory == ours.placement.budget
        assert (ours.placement.embedding, ours.placement.blocks) == (step.embedding, step.blocks)
        assert torch.equal(ours(**row).logits, expected)
        assert [note.message for note in notes if note.kind == "note"][-1] == f"memory: {ours.placement}"
    with pytest.raises(InputError, match=r"does not fit in 0 MB of memory .* needs \d+ bytes"):
        thrifty.load(tmp_path, memory=1000)


@pytest.mark.parametrize("wrong", [{"memory": "much"}, {"memory": "1GB", "tokens": 0}, {"memory": "1GB", "tokens": True}])
def test_words_that_are_refused_before_anything_is_read(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"memory must be|tokens must be"):
        thrifty.load(tmp_path / "absent", **wrong)


def test_it_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed(monkeypatch, EVERYTHING)
    ours = thrifty.load(tiny("llama", tmp_path), memory="1GB")
    with pytest.raises(RunError, match="copy the folder"):
        ours.save_pretrained(tmp_path / "saved")


def test_pickled_weights_stay_in_memory_but_for_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pickled checkpoint there is nothing to map."""
    folder = tiny("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    asked = placed(monkeypatch, Placement(blocks=2))
    ours = thrifty.load(folder, memory="1GB", allow_pickle=True)
    assert asked[0].embedding == asked[0].head == 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    row = inputs("llama", 1, 9)
    with torch.no_grad():
        assert torch.equal(ours(**row).logits, thrifty.load(folder)(**row).logits)
