"""Removing units is switching them off, on every architecture and for any choice of units."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.cutting import run_cut, run_zeroed
from tests.tiny import ARCHITECTURES, inputs
from thrifty.base.errors import InputError
from thrifty.base.records import Cut
from thrifty.models.resize import Resizer
from thrifty.models.units import Found, units_of

KINDS = {
    "llama": {"neurons", "heads"},
    "phi": {"neurons", "heads"},
    "gpt2": {"neurons"},
    "opt": {"neurons"},
    "bert": {"neurons"},
    "mixtral": {"neurons", "heads", "experts"},
    "olmoe": {"neurons", "experts"},
    "mamba": {"channels", "states"},
    "mamba2": {"states"},
    "vit": {"neurons", "heads"},
}
"""What can be cut of each with the config that it has."""


@cache
def found_in(source) -> dict[str, Found]:
    return {block.path: units_of(source, block) for block in source.anatomy.blocks}


def smaller(source, share: float):
    """(the model with about `share` of each kind of unit, how many that are by name)."""
    found = {path: item.units for path, item in found_in(source).items()}
    resizer = Resizer(source, found)
    kept = {}
    for alike, units in {item.alike: item for items in found.values() for item in items}.items():
        try:
            kept[alike] = resizer.keep(alike, max(units.least, round(units.count * share)))
        except InputError:
            continue
    return resizer.result(), kept


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cutting_equals_switching_off(name, source_of):
    source = source_of(name)
    rows = inputs(name, rows=2, length=7)

    @settings(max_examples=2)
    @given(st.sampled_from([0.3, 0.5, 0.75]), st.integers(0, 1 << 20))
    def check(share, seed):
        resized, kept = smaller(source, share)
        generator = torch.Generator().manual_seed(seed)
        cuts = {
            path: [
                Cut(units, torch.randperm(units.count, generator=generator)[: kept[units.alike]].sort().values)
                for units in item.units
                if units.alike in kept
            ]
            for path, item in found_in(source).items()
        }
        before, after = run_zeroed(source, cuts, rows), run_cut(source, resized, cuts, rows)
        assert resized.source.anatomy.parameters < source.anatomy.parameters
        assert torch.allclose(before, after, atol=1e-5 * max(1.0, float(before.abs().max())), rtol=0)
        assert not torch.allclose(before, run_zeroed(source, dict.fromkeys(cuts, ()), rows), atol=1e-3)

    check()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_can_be_cut(name, source_of):
    source = source_of(name)
    _, kept = smaller(source, 0.5)
    kinds = {item.alike: item.kind for found in found_in(source).values() for item in found.units}
    assert {kinds[alike] for alike in kept} == KINDS[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_matrices_of_a_block_are_wholly_units(name, source_of):
    """Whatever is sliced by units has nothing else along that dimension, but for a fused projection's other parts."""
    source = source_of(name)
    for block in source.anatomy.blocks:
        for units in found_in(source)[block.path].units:
            for member in units.members:
                length = source.tensors[member.source].shape[member.dim + (member.expert is not None)]
                owned = sum(size for _, size in member.runs) * units.count
                assert owned <= length
                if units.kind in ("neurons", "heads", "experts") and member.expert is None:
                    assert owned == length


@pytest.mark.parametrize(
    ("name", "words"),
    [("olmoe", "q_norm averages over all heads"), ("mamba2", "norm averages over all heads")],
)
def test_what_cannot_be_cut_is_said(name, words, source_of):
    missing = [sentence for found in found_in(source_of(name)).values() for sentence in found.missing]
    assert any(words in sentence for sentence in missing)


def test_a_number_of_heads_that_the_config_refuses_becomes_the_nearest(tmp_path):
    from tests.tiny import _TEXT, hub, randomise
    from thrifty.models import open_model

    settings_ = {**_TEXT, "num_attention_heads": 8, "num_key_value_heads": 8}
    model = hub.LlamaForCausalLM(hub.LlamaConfig(**settings_))
    randomise(model)
    model.save_pretrained(tmp_path)
    source = open_model(tmp_path)
    resizer = Resizer(source, {block.path: units_of(source, block).units for block in source.anatomy.blocks})
    assert resizer.keep("text:attention.output", 5) == 4
    assert "not a multiple" in resizer.result().warnings[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3_moe", "vit", "mamba", "mamba2"])
def test_removing_a_block_equals_skipping_it(name, source_of):
    source = source_of(name)
    found = {path: item.units for path, item in found_in(source).items()}
    for gone in range(2):
        resizer = Resizer(source, found)
        chain = source.anatomy.chains[0]
        resizer.keep_blocks(chain, [1 - gone])
        rows, cuts = inputs(name, rows=2, length=12), dict.fromkeys(found, ())
        after = run_cut(source, resizer.result(), cuts, rows)
        before = run_zeroed(source, cuts, rows, skipped=[source.anatomy.blocks[gone].path])
        assert torch.allclose(before, after, atol=1e-5 * max(1.0, float(before.abs().max())), rtol=0)


def test_lists_of_as_many_values_as_there_are_blocks_may_be_of_something_else(tmp_path):
    from tests.tiny import build
    from thrifty.models import open_model

    for name, lists in (("gemma3", {"eos_token_id": [2, 3]}), ("mamba2", {"time_step_limit": [0.0, 8.0]})):
        model = build(name)
        for key, value in lists.items():
            setattr(model.config, key, value)
        model.generation_config.eos_token_id = 2
        model.save_pretrained(tmp_path / name)
        source = open_model(tmp_path / name)
        resizer = Resizer(source, {block.path: () for block in source.anatomy.blocks})
        resizer.keep_blocks("text", [1])
        assert {key: resizer.raw[key] for key in lists} == lists
        assert resizer.raw.get("layer_types", ["full_attention"]) == ["full_attention"]


def test_heads_that_cannot_go_leave_the_config_to_neurons(tmp_path):
    """Norms of queries are as wide as the hidden size over the number of heads there."""
    from tests.tiny import _TEXT, hub, randomise
    from thrifty.models import open_model

    model = hub.PhiForCausalLM(hub.PhiConfig(**{**_TEXT, "num_key_value_heads": 4, "qk_layernorm": True}))
    randomise(model)
    model.save_pretrained(tmp_path)
    source = open_model(tmp_path)
    resizer = Resizer(source, {block.path: units_of(source, block).units for block in source.anatomy.blocks})
    with pytest.raises(InputError, match="has fewer heads"):
        resizer.keep("text:attention.output", 2)
    assert resizer.keep("text:mlp.hidden", 48) == 48
    assert resizer.result().source.config.num_attention_heads == 4


def test_biases_are_added_where_the_config_has_a_switch(source_of):
    def asked(name):
        source = source_of(name)
        resizer = Resizer(source, {block.path: units_of(source, block).units for block in source.anatomy.blocks})
        readers = [linear.path for block in source.anatomy.blocks for linear in block.linears if linear.role in ("o", "down")]
        lacking = resizer.add_biases(readers)
        return resizer.result(), {path.rpartition(".")[2] for path in lacking}

    resized, lacking = asked("llama")
    assert not lacking
    assert resized.raw["mlp_bias"] is True
    assert resized.biases["model.layers.1.mlp.down_proj"] == "model.layers.1.mlp.down_proj.bias"
    assert resized.added["model.layers.0.mlp.gate_proj.bias"] == (96,)
    assert asked("qwen3")[1] == {"down_proj"}
    assert asked("mistral")[1] == {"o_proj", "down_proj"}
    assert not asked("phi")[1]
