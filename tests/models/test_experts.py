"""Plain experts compute what the fused ones compute, and each is called with its own tokens only."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import build, inputs
from thrifty.models import linear_modules, run_block
from thrifty.models.experts import Experts, is_fused, unfused


def _filled(fused: torch.nn.Module) -> Experts:
    plain = unfused(fused).to_empty(device="cpu")
    inner = fused.down_proj.shape[2]
    for index, expert in enumerate(plain):
        expert.gate_proj.weight.data.copy_(fused.gate_up_proj[index, :inner])
        expert.up_proj.weight.data.copy_(fused.gate_up_proj[index, inner:])
        expert.down_proj.weight.data.copy_(fused.down_proj[index])
    return plain


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_plain_experts_equal_fused_ones(name):
    fused = next(module for module in build(name).modules() if is_fused(module))
    plain = _filled(fused)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(30, 64, generator=generator)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(30)])
    weights = torch.rand(30, 2, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(plain(hidden, index, weights), fused(hidden, index, weights), atol=1e-5, rtol=1e-5)


def test_an_expert_sees_its_tokens_and_no_others(source_of):
    source = source_of("olmoe")
    block = source.anatomy.blocks[0]
    rows = inputs("olmoe", rows=2, length=12)
    shell = source.shell(torch.float32)
    module = source.block(block, torch.float32)
    linears = linear_modules(module, block)
    seen: dict[str, torch.Tensor] = {}
    routed: list[torch.Tensor] = []
    for path, linear in linears.items():
        linear.register_forward_pre_hook(lambda _, args, path=path: seen.__setitem__(path, args[0]))
    experts = module.get_submodule(block.experts.path.removeprefix(block.path + "."))
    experts.register_forward_pre_hook(lambda _, args: routed.extend(args))
    run_block(module, shell.enter(rows, "text", {}), shell.calls(rows, {})[block.path])
    hidden, index, _ = routed
    assert index.shape == (24, block.experts.experts_per_token)
    for number in range(block.experts.num_experts):
        own = hidden[(index == number).any(dim=1)]
        assert torch.equal(seen[f"{block.experts.path}.{number}.gate_proj"], own)
        assert torch.equal(seen[f"{block.experts.path}.{number}.up_proj"], own)


def test_experts_without_tokens_are_not_called():
    plain = _filled(next(module for module in build("mixtral").modules() if is_fused(module)))
    called = []
    for number, expert in enumerate(plain):
        expert.register_forward_pre_hook(lambda *_, number=number: called.append(number))
    with torch.no_grad():
        out = plain(torch.randn(5, 64), torch.tensor([[1], [3], [1], [1], [3]]), torch.ones(5, 1))
    assert called == [1, 3]
    assert out.shape == (5, 64)


def test_neurons_are_what_the_down_projection_reads():
    expert = _filled(next(module for module in build("mixtral").modules() if is_fused(module)))[1]
    called = []
    for linear in (expert.gate_proj, expert.up_proj, expert.down_proj):
        linear.register_forward_pre_hook(lambda _, args: called.append(args[0]))
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    found = expert.neurons(hidden)
    assert not called
    expert(hidden)
    assert torch.equal(found, called[2])
