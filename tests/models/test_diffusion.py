"""Transformers of diffusers are opened, described and walked as models of transformers are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.models.walking import walk
from tests.tiny import DIFFUSION, inputs, tiny
from thrifty.base.errors import InputError
from thrifty.models import get_weight, linear_modules, open_model, run_block, set_weight
from thrifty.models.shell import main_output

diffusers = pytest.importorskip("diffusers")


def plain(folder: Path, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """What diffusers' own loading and forward pass put out."""
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    with torch.no_grad():
        return main_output(getattr(diffusers, name).from_pretrained(folder).eval()(**rows))


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_walk_equals_the_whole_model(name, folder_of, source_of):
    rows = inputs(name, rows=3, length=12)
    expected = plain(folder_of(name), rows)
    assert expected.std() > 0.05
    torch.testing.assert_close(walk(source_of(name), rows), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DIFFUSION)
def test_shards_read_like_one_file(name, tmp_path, source_of):
    rows = inputs(name, rows=2, length=10)
    folder = tiny(name, tmp_path / "sharded", max_shard_size="200KB")
    assert len(list(folder.glob("diffusion_pytorch_model-*.safetensors"))) > 1
    assert torch.equal(walk(open_model(folder), rows), walk(source_of(name), rows))


@pytest.mark.parametrize("name", DIFFUSION)
def test_every_matrix_of_a_block_is_accounted_for(name, source_of):
    source = source_of(name)
    for block in source.anatomy.blocks:
        matrices = {key for key in source.block_keys(block) if key.endswith(".weight") and len(source.tensors[key].shape) == 2}
        left = matrices - {linear.source for linear in block.linears}
        assert all("_embedder." in key for key in left), left
        linears = linear_modules(source.block(block, torch.float32), block)
        for stage in block.stages:
            assert stage.reads in block.spaces and {linear.path for linear in stage.linears} <= set(stage.reads.consumers)
            for linear in stage.linears:
                assert tuple(get_weight(linears[linear.path]).shape) == (linear.out_features, linear.in_features)
                assert linear.in_features == stage.reads.width


@pytest.mark.parametrize("name", DIFFUSION)
def test_linears_of_a_stage_read_the_same(name, source_of):
    """And every stage is reached in the order that the anatomy says."""
    source, rows = source_of(name), inputs(name, rows=2, length=10)
    shell, done = source.shell(torch.float32), {}
    for chain in source.anatomy.chains:
        calls, hidden = shell.calls(rows, done), shell.enter(rows, chain, done)
        for block in (block for block in source.anatomy.blocks if block.chain == chain):
            module, seen = source.block(block, torch.float32), {}
            for path, linear in linear_modules(module, block).items():
                linear.register_forward_pre_hook(lambda _, arguments, path=path, seen=seen: seen.setdefault(path, arguments[0]))
            hidden = run_block(module, hidden, calls[block.path])
            assert seen.keys() == {linear.path for linear in block.linears}
            for stage in block.stages:
                first, *others = (seen[linear.path] for linear in stage.linears)
                assert all(torch.equal(first, other) for other in others)
            places = [min(list(seen).index(linear.path) for linear in stage.linears) for stage in block.stages]
            assert places == sorted(places)
        done[chain] = hidden


@pytest.mark.parametrize("name", DIFFUSION)
def test_spaces_said_to_commute_do(name, source_of):
    """Scales move from what writes a space to what reads it, and channels of neurons can be put in another order."""
    source, rows = source_of(name), inputs(name, rows=2, length=10)
    shell, generator, done, tried = source.shell(torch.float32), torch.Generator().manual_seed(3), {}, 0
    for chain in source.anatomy.chains:
        calls, hidden = shell.calls(rows, done), shell.enter(rows, chain, done)
        block = next(block for block in source.anatomy.blocks if block.chain == chain)
        module = source.block(block, torch.float32)
        before, linears = run_block(module, hidden, calls[block.path]), linear_modules(module, block)
        for space in block.spaces:
            if space.commutes_with == "none" or not all(path in linears for path in space.producers):
                continue
            writers, readers = ([linears[path] for path in paths] for paths in (space.producers, space.consumers))
            tried += 1
            scale, order = torch.exp(0.5 * torch.randn(space.width, generator=generator)), torch.randperm(space.width, generator=generator)
            scale, order = (scale, slice(None)) if space.commutes_with == "any" else (torch.ones(space.width), order)
            for writer in writers:
                set_weight(writer, (get_weight(writer) / scale[:, None])[order])
                with torch.no_grad():
                    writer.bias.copy_((writer.bias / scale)[order])
            for reader in readers:
                set_weight(reader, (get_weight(reader) * scale)[:, order])
        torch.testing.assert_close(run_block(module, hidden, calls[block.path]), before, atol=1e-4, rtol=1e-4)
        done[chain] = run_block(source.block(block, torch.float32), hidden, calls[block.path])
    assert tried


def test_a_model_that_is_built_saves_and_loads_as_diffusers_does(tmp_path, folder_of, source_of):
    """The class is that of diffusers with a few names more."""
    import thrifty

    model = thrifty.load(folder_of("dit"))
    assert isinstance(model, diffusers.DiTTransformer2DModel)
    model.save_pretrained(tmp_path)
    rows = inputs("dit", rows=2, length=0)
    assert torch.equal(plain(tmp_path, rows), plain(folder_of("dit"), rows))


def _edit(folder: Path, **changes) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def test_an_older_name_of_the_class_is_understood(tmp_path):
    folder = _edit(tiny("dit", tmp_path), _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    assert open_model(folder).anatomy.architecture == "DiTTransformer2DModel"


def test_what_is_refused_is_refused_in_a_sentence(tmp_path, monkeypatch):
    folder = tiny("dit", tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"pipeline of diffusers; give the folder of its transformer .*transformer"):
        open_model(tmp_path / "pipeline")
    with pytest.raises(InputError, match="asks for"):
        open_model(_edit(folder, attention_head_dim=8))
    with pytest.raises(InputError, match="UNet2DModel of diffusers; of those DiTTransformer2DModel"):
        open_model(_edit(folder, _class_name="UNet2DModel"))
    _edit(folder, _class_name="DiTTransformer2DModel", attention_head_dim=16)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'thrifty\[diffusion\]'") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
