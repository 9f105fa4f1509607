"""Opening networks whose layers differ in width: each block has its own sizes, and no code of the folder runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import thrifty
from tests.export.test_uneven import write_pieces
from tests.models.walking import walk
from tests.tiny import inputs
from tests.uneven import LAYERS, write_by_hand
from thrifty.base.anatomy import Anatomy, Block
from thrifty.base.errors import InputError
from thrifty.models import open_model
from thrifty.models.shell import main_output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uneven")


def _logits(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(**inputs(name, 2, 12)))


@pytest.mark.parametrize("name", LAYERS)
def test_blocks_one_at_a_time(name, base):
    model, _ = write_by_hand(name, base / name)
    source = open_model(base / name)
    assert torch.allclose(walk(source, inputs(name, 2, 12)), _logits(model, name), atol=1e-5, rtol=1e-5)
    assert not source.anatomy.missing or name == "mamba"  # its time-step projection is never called
    assert not source.anatomy.inferred


def _linear(block: Block, end: str) -> tuple[int, int]:
    return next((linear.out_features, linear.in_features) for linear in block.linears if linear.path.endswith(end))


def _opened(name: str, base: Path) -> Anatomy:
    if not (base / name).exists():
        write_by_hand(name, base / name)
    return open_model(base / name).anatomy


def test_sizes_by_block(base):
    first, second = _opened("mixtral", base).blocks
    assert (first.attention.num_heads, first.attention.num_key_value_heads, first.attention.head_dim) == (4, 2, 16)
    assert (second.attention.num_heads, second.attention.num_key_value_heads, second.attention.head_dim) == (2, 1, 16)
    assert (first.experts.num_experts, second.experts.num_experts) == (4, 2)
    assert (_linear(first, "3.down_proj"), _linear(second, "1.down_proj")) == ((64, 96), (64, 32))
    states = [block.state_space for block in _opened("mamba2", base).blocks]
    assert [(state.inner_size, state.num_heads) for state in states] == [(128, 4), (64, 2)]
    assert [block.state_space.state_size for block in _opened("mamba", base).blocks] == [8, 4]


@pytest.mark.parametrize("trusted", [False, True])
def test_the_file_in_the_folder_does_not_run(trusted, base, tmp_path):
    _opened("llama", base)
    shutil.copytree(base / "llama", tmp_path / "model")
    (tmp_path / "model" / "modeling_uneven.py").write_text("raise SystemExit('it ran')\n")
    source = open_model(tmp_path / "model", trust_remote_code=trusted)
    expected = walk(source, inputs("llama", 2, 12))
    loaded = thrifty.load(tmp_path / "model", dtype=torch.float32, trust_remote_code=trusted)
    assert torch.allclose(_logits(loaded, "llama"), expected, atol=1e-5)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=trusted)
    assert torch.allclose(_logits(again, "llama"), expected, atol=1e-5)


def test_other_code_is_still_refused(base, tmp_path):
    _opened("llama", base)
    shutil.copytree(base / "llama", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    for kind in ("llama", "uneven_t5", "somebody_elses"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": kind}))
        with pytest.raises(InputError, match="brings its own Python code"):
            open_model(tmp_path / "model")


def test_a_broken_outline_is_one_sentence(base, tmp_path):
    _opened("llama", base)
    shutil.copytree(base / "llama", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    for outline in (
        {**config["uneven"], "sizes": {"intermediate_size": [96]}},
        {**config["uneven"], "block": "logger"},
        {**config["uneven"], "version": 2},
        {},
    ):
        file.write_text(json.dumps({**config, "uneven": outline}))
        with pytest.raises(InputError) as caught:
            open_model(tmp_path / "model")
        assert "\n" not in str(caught.value)


def test_pieces_are_linears_of_their_own(tmp_path):
    model, _ = write_pieces(tmp_path / "pieces")
    source = open_model(tmp_path / "pieces")
    assert torch.allclose(walk(source, inputs("llama", 2, 12)), _logits(model, "llama"), atol=1e-5, rtol=1e-5)
    first, second = source.anatomy.blocks
    short = {linear.path.removeprefix("model.layers.0.") for linear in first.linears}
    assert {"self_attn.q_proj.down", "self_attn.q_proj.up", "self_attn.v_proj.kept", "self_attn.o_proj.kept"} <= short
    assert {"self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj"}.isdisjoint(short)
    spaces = {space.name: space for space in first.spaces}
    assert spaces["self_attn.q_proj.up.input"].width == 8
    assert spaces["self_attn.q_proj.up.input"].producers == ("model.layers.0.self_attn.q_proj.down",)
    assert spaces["self_attn.o_proj.kept.input"].commutes_with == "none" and "attention.output" not in spaces
    spaces = {space.name: space for space in second.spaces}
    assert "model.layers.1.mlp.branch.down" in spaces["mlp.input"].consumers
    assert "model.layers.1.self_attn.k_proj.branch.down" in spaces["attention.input"].consumers
    assert spaces["mlp.branch.up.input"].width == 8
