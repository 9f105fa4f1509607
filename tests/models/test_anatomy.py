"""What is declared of each family agrees with what its model does."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.tiny import ARCHITECTURES, inputs
from thrifty.base.anatomy import Space
from thrifty.models import get_weight, linear_modules, norm_modules, run_block, set_weight
from thrifty.models.anatomy import describe_model
from thrifty.models.skeleton import build_skeleton
from thrifty.models.template import families


def _without_names(space: Space) -> tuple:
    return space.width, space.unit, space.unit_size, space.producers, frozenset(space.consumers), space.commutes_with, space.repeat


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_declaration_and_inference_agree(name, source_of):
    source = source_of(name)
    declared = source.anatomy
    inferred = describe_model(build_skeleton(source.config), source.names, declared=False)
    assert inferred.inferred
    assert not declared.inferred
    assert inferred.chains == declared.chains
    assert inferred.final_norms == declared.final_norms
    assert set(inferred.embeddings) == set(declared.embeddings)
    for mine, theirs in zip(inferred.blocks, declared.blocks, strict=True):
        assert [frozenset(stage.linears) for stage in mine.stages] == [frozenset(stage.linears) for stage in theirs.stages]
        assert [_without_names(stage.reads) for stage in mine.stages] == [_without_names(stage.reads) for stage in theirs.stages]
        assert {_without_names(space) for space in mine.spaces} == {_without_names(space) for space in theirs.spaces}
        assert set(mine.norms) == set(theirs.norms)
        assert set(mine.routers) == set(theirs.routers)
        assert (mine.attention, mine.experts, mine.state_space) == (theirs.attention, theirs.experts, theirs.state_space)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_matrix_of_a_block_is_accounted_for(name, source_of):
    source = source_of(name)
    for block in source.anatomy.blocks:
        known = {linear.source for linear in (*block.linears, *block.routers)}
        matrices = {key for key in source.block_keys(block) if len(source.tensors[key].shape) == 2}
        left = {key for key in matrices - known if "A_log" not in key and "dt_proj" not in key}
        assert not left


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_are_unique_and_spaces_whole(name, source_of):
    anatomy = source_of(name).anatomy
    paths = [linear.path for linear in anatomy.linears]
    assert len(paths) == len(set(paths))
    for block in anatomy.blocks:
        names = [space.name for space in block.spaces]
        assert len(names) == len(set(names))
        readers = {linear.path: linear.in_features for linear in (*block.linears, *block.routers)}
        for space in block.spaces:
            assert space.consumers
            assert all(readers[path] == space.width for path in space.consumers)
            assert space.width % space.unit_size == 0
        for stage in block.stages:
            assert stage.reads in block.spaces
            assert {linear.path for linear in stage.linears} <= set(stage.reads.consumers)
            assert stage.reads.within is None or stage.reads.within in names


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_spaces_said_to_scale_do_scale(name, source_of):
    """Divide what the producers write, multiply what the consumers read: the block puts out the same."""
    source = source_of(name)
    rows = inputs(name, rows=2, length=10)
    shell = source.shell(torch.float32)
    calls = shell.calls(rows, {})
    generator = torch.Generator().manual_seed(3)
    tried = 0
    for chain in source.anatomy.chains:
        hidden = shell.enter(rows, chain, {})
        block = next(block for block in source.anatomy.blocks if block.chain == chain)
        module = source.block(block, torch.float32)
        before = run_block(module, hidden, calls[block.path])
        linears, norms = linear_modules(module, block), norm_modules(module, block)
        kinds = {norm.path: norm for norm in block.norms}
        for space in block.spaces:
            if space.commutes_with not in ("scale", "any"):
                continue
            tried += 1
            narrow = torch.exp(0.5 * torch.randn(_own_width(space), generator=generator))
            for path in space.producers:
                _divide(norms.get(path) or linears[path], narrow, 1.0 if path in kinds and kinds[path].plus_one else 0.0)
            for path in space.consumers:
                set_weight(linears[path], get_weight(linears[path]) * _spread(space, narrow))
        assert torch.allclose(run_block(module, hidden, calls[block.path]), before, atol=1e-4)
    assert tried


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_spaces_said_to_hold_a_shift_do(name, source_of):
    """Add something to the producer's bias, and take what that does off the consumers' biases: the block puts out the same."""
    source = source_of(name)
    rows = inputs(name, rows=2, length=10)
    shell = source.shell(torch.float32)
    calls = shell.calls(rows, {})
    generator = torch.Generator().manual_seed(4)
    for chain in source.anatomy.chains:
        hidden = shell.enter(rows, chain, {})
        block = next(block for block in source.anatomy.blocks if block.chain == chain)
        module = source.block(block, torch.float32)
        before = run_block(module, hidden, calls[block.path])
        linears, norms = linear_modules(module, block), norm_modules(module, block)
        for space in block.spaces:
            assert space.normed == (bool(space.producers) and set(space.producers) <= set(norms))
            if not space.holds_shift:
                continue
            added = torch.randn(_own_width(space), generator=generator)
            with torch.no_grad():
                for path in space.producers:
                    (norms.get(path) or linears[path]).bias.add_(added)
                for path in space.consumers:
                    linears[path].bias.sub_(get_weight(linears[path]) @ _spread(space, added))
        assert torch.allclose(run_block(module, hidden, calls[block.path]), before, atol=1e-4)


def _own_width(space: Space) -> int:
    return space.width // space.repeat


def _spread(space: Space, narrow: torch.Tensor) -> torch.Tensor:
    """Each head of the producer's side once for every query head that reads it."""
    if space.repeat == 1:
        return narrow
    size = space.unit_size // space.repeat
    return narrow.reshape(-1, 1, size).expand(-1, space.repeat, size).reshape(-1)


def _divide(module: torch.nn.Module, scale: torch.Tensor, one: float) -> None:
    weight = get_weight(module)
    set_weight(module, (weight + one) / scale - one if weight.ndim == 1 else weight / scale[:, None])
    if getattr(module, "bias", None) is not None:
        with torch.no_grad():
            module.bias.div_(scale)


@pytest.mark.parametrize(
    ("name", "tied", "head", "kind"),
    [
        ("llama", False, "lm_head", "causal_lm"),
        ("qwen2", True, "lm_head", "causal_lm"),
        ("gpt2", True, "lm_head", "causal_lm"),
        ("bert", True, "cls.predictions.decoder", "masked_lm"),
        ("vit", False, "classifier", "vision"),
        ("clip", False, None, "dual_encoder"),
        ("llava", False, "lm_head", "vision_language"),
        ("mamba", True, "lm_head", "causal_lm"),
    ],
)
def test_heads_and_tying(name, tied, head, kind, source_of):
    anatomy = source_of(name).anatomy
    assert (anatomy.tied, anatomy.head, anatomy.kind) == (tied, head, kind)


def test_traits_that_trap_other_tools(source_of):
    assert all(norm.plus_one for block in source_of("gemma3").anatomy.blocks for norm in block.norms)
    assert not any(norm.plus_one for block in source_of("llama").anatomy.blocks for norm in block.norms)
    assert all(space.commutes_with == "none" for space in source_of("bert").anatomy.blocks[0].spaces if space.name.endswith("input"))
    assert [len(stage.linears) for stage in source_of("phi").anatomy.blocks[0].stages] == [4, 1, 1]
    assert source_of("gpt2").anatomy.blocks[0].stages[0].linears[0].storage == "conv1d"
    hidden = {space.name: space for space in source_of("opt").anatomy.blocks[0].spaces}["mlp.hidden"]
    assert hidden.commutes_with == "scale"
    hidden = {space.name: space for space in source_of("phi").anatomy.blocks[0].spaces}["mlp.hidden"]
    assert hidden.commutes_with == "permutation"


def test_every_expert_reads_the_shared_space(source_of):
    block = source_of("qwen2_moe").anatomy.blocks[0]
    shared = next(space for space in block.spaces if space.name == "mlp.input")
    views = [space for space in block.spaces if space.within == shared.name]
    assert len(views) == block.experts.num_experts == 4
    assert all(set(view.consumers) < set(shared.consumers) for view in views)
    assert {router.path for router in block.routers} < set(shared.consumers)
    assert {router.path.rpartition(".")[2] for router in block.routers} == {"gate", "shared_expert_gate"}


def test_post_norm_opt_is_not_rescaled(tmp_path, folder_of):
    from thrifty.models import open_model

    folder = tmp_path / "opt"
    folder.mkdir()
    for file in folder_of("opt").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "do_layer_norm_before": False, "_remove_final_layer_norm": False}))
    source = open_model(folder)
    inferred = describe_model(build_skeleton(source.config), source.names, declared=False)
    for anatomy in (source.anatomy, inferred):
        commutes = [stage.reads.commutes_with for stage in anatomy.blocks[0].stages]
        assert commutes == ["none", "any", "none", "scale"]


def test_clipped_values_are_not_rescaled(folder_of, tmp_path):
    from thrifty.models import open_model

    folder = tmp_path / "olmoe"
    folder.mkdir()
    for file in folder_of("olmoe").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "clip_qkv": 0.1}))
    output = next(space for space in open_model(folder).anatomy.blocks[0].spaces if space.name == "attention.output")
    assert output.commutes_with == "none"
    assert not output.producers


def test_the_description_is_plain_json_and_counts_parameters(source_of):
    source = source_of("olmoe")
    data = json.loads(json.dumps(source.anatomy.to_json()))
    assert data["model_type"] == "olmoe"
    assert source.anatomy.parameters == sum(math.prod(info.shape) for info in source.tensors.values())


def test_every_family_file_is_valid():
    assert {"llama", "gemma3_text", "gpt2", "mixtral", "clip_vision_model", "mamba2"} <= set(families())
