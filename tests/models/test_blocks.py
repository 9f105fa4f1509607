"""Reading and setting the matrices of a block."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import ARCHITECTURES
from thrifty.models import Call, get_weight, linear_modules, norm_modules, run_block, set_weight
from thrifty.models.blocks import hollow_block


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_matrices_have_the_widths_of_the_anatomy(name, source_of):
    source = source_of(name)
    for block in source.anatomy.blocks:
        module = source.block(block, torch.float32)
        assert not any(parameter.is_meta for parameter in module.parameters())
        linears = linear_modules(module, block)
        for linear in (*block.linears, *block.routers):
            weight = get_weight(linears[linear.path])
            assert tuple(weight.shape) == (linear.out_features, linear.in_features)
            stored = source.read(linear.source)
            if linear.part is None:
                assert torch.equal(weight, stored.T if linear.storage == "conv1d" else stored)
            bias = getattr(linears[linear.path], "bias", None)
            assert (bias is not None) == (linear.bias_source is not None)
            if bias is not None:
                assert torch.equal(bias, source.read(linear.bias_source))
        for norm in block.norms:
            assert tuple(get_weight(norm_modules(module, block)[norm.path]).shape) == (norm.width,)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_weight_that_was_set_is_read_back(name, source_of):
    source = source_of(name)
    block = source.anatomy.blocks[0]
    for linear in linear_modules(source.block(block, torch.float32), block).values():
        wanted = torch.randn(get_weight(linear).shape)
        set_weight(linear, wanted)
        assert torch.equal(get_weight(linear), wanted)
        inputs = torch.randn(2, 3, wanted.shape[1])
        bias = linear.bias if linear.bias is not None else 0
        torch.testing.assert_close(linear(inputs), inputs @ wanted.T + bias, atol=1e-4, rtol=1e-4)


def test_blocks_are_independent_copies(source_of):
    source = source_of("llama")
    block = source.anatomy.blocks[0]
    first, second = source.block(block, torch.float32), source.block(block, torch.float32)
    path = block.linears[0].path
    set_weight(linear_modules(first, block)[path], torch.zeros(64, 64))
    assert get_weight(linear_modules(second, block)[path]).abs().sum() > 0


def test_run_block_takes_tensors_and_tuples():
    class Doubling(torch.nn.Module):
        def forward(self, hidden_states, shift, scale=1.0):
            return (hidden_states * 2 + shift, None) if scale == 1.0 else hidden_states * scale + shift

    hidden = torch.ones(2, 3, 4)
    assert torch.equal(run_block(Doubling(), hidden, Call((torch.tensor(1.0),))), hidden * 3)
    assert torch.equal(run_block(Doubling(), hidden, Call((), {"shift": 0.0, "scale": 5.0}, "hidden_states")), hidden * 5)


def test_a_call_moves_floats_only_into_another_type():
    call = Call((torch.ones(2), torch.ones(2, dtype=torch.long)), {"pair": (torch.zeros(1), None), "by_name": {"x": torch.ones(1)}})
    moved = call.to("cpu", torch.bfloat16)
    assert moved.args[0].dtype == torch.bfloat16
    assert moved.args[1].dtype == torch.long
    assert moved.kwargs["pair"][0].dtype == torch.bfloat16
    assert moved.kwargs["pair"][1] is None
    assert moved.kwargs["by_name"]["x"].dtype == torch.bfloat16


def test_a_hollow_block_leaves_the_original_alone(source_of):
    shell = source_of("llama").shell(torch.float32)
    block = shell.model.get_submodule("model.layers.0")
    copy = hollow_block(block)
    assert "forward" in block.__dict__
    assert "forward" not in copy.__dict__
