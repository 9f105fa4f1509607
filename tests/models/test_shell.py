"""Entering, walking block by block and finishing gives what the whole model gives."""

from __future__ import annotations

import pytest
import torch

from tests.models.walking import reference, walk
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.models import open_model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_walk_equals_the_whole_model(name, folder_of, source_of):
    rows = inputs(name, rows=3, length=12)
    out = walk(source_of(name), rows)
    expected = reference(folder_of(name), rows)
    assert out.shape == expected.shape
    assert expected.std() > 0.05  # an output that hardly varies would prove nothing
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral", "mamba", "bert"])
def test_a_walk_in_bfloat16_equals_the_whole_model(name, folder_of, source_of):
    rows = inputs(name, rows=2, length=8)
    out = walk(source_of(name), rows, torch.bfloat16)
    expected = reference(folder_of(name), rows, torch.bfloat16)
    torch.testing.assert_close(out.float(), expected.float(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["llama", "olmoe", "llava"])
def test_shards_read_like_one_file(name, tmp_path, source_of):
    rows = inputs(name, rows=2, length=10)
    folder = tiny(name, tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert torch.equal(walk(open_model(folder), rows), walk(source_of(name), rows))


def test_calls_of_one_row_serve_every_row(source_of):
    source = source_of("gemma2")
    rows = inputs("gemma2", rows=4, length=20)
    shell = source.shell(torch.float32)
    for call in shell.calls(rows, {}).values():
        tensors = []
        call.map(lambda tensor, tensors=tensors: (tensors.append(tensor), tensor)[1])
        assert tensors
        assert all(tensor.shape[0] == 1 for tensor in tensors)


def test_the_shell_holds_no_block(source_of):
    source = source_of("llama")
    shell = source.shell(torch.float32)
    real = sum(parameter.numel() for parameter in shell.model.parameters() if not parameter.is_meta)
    assert real == source.shell_parameters()


def test_inputs_that_miss_a_chain_are_named(source_of):
    shell = source_of("llava").shell(torch.float32)
    with pytest.raises(ValueError, match="vision"):
        shell.enter({"input_ids": torch.tensor([[3, 4, 5]])}, "vision", {})


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bert", "vit", "mamba"])
def test_the_norm_behind_the_blocks_is_the_model_s_own(name, folder_of, source_of):
    """What leaves the last block of the whole model, normed here, is what transformers calls its last hidden state."""
    from thrifty.runtime.load import load

    model, source = load(folder_of(name), dtype=torch.float32), source_of(name)
    left = []
    last = model.get_submodule(source.anatomy.blocks[-1].path)
    last.register_forward_hook(lambda _, __, out: left.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        expected = model.base_model(**inputs(name, rows=2, length=9))[0]
        found = source.shell(torch.float32).normed(left[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
