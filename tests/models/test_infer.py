"""Architectures that nobody described are described by running them, and walk like the others."""

from __future__ import annotations

import pytest
import torch
import transformers as hub

from tests.models.walking import reference, walk
from tests.tiny import randomise
from thrifty.models import open_model

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _save(model, folder):
    randomise(model)
    model.eval().save_pretrained(folder)
    return folder


def _starcoder2():
    return hub.Starcoder2ForCausalLM(hub.Starcoder2Config(**_TEXT))


def _cohere():
    return hub.CohereForCausalLM(hub.CohereConfig(**_TEXT))


def _granite():
    return hub.GraniteForCausalLM(hub.GraniteConfig(**_TEXT))


def _gpt_neox():
    settings = {key: value for key, value in _TEXT.items() if key != "num_key_value_heads"}
    return hub.GPTNeoXForCausalLM(hub.GPTNeoXConfig(**settings))


def _olmo2():
    return hub.Olmo2ForCausalLM(hub.Olmo2Config(**_TEXT))


def _jamba():
    settings = {"mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2}
    return hub.JambaForCausalLM(hub.JambaConfig(**_TEXT, **settings, attn_layer_offset=1))


@pytest.mark.parametrize("build", [_starcoder2, _cohere, _granite, _gpt_neox, _olmo2, _jamba])
def test_an_undescribed_architecture_walks(build, tmp_path):
    torch.manual_seed(0)
    folder = _save(build(), tmp_path)
    source = open_model(folder)
    assert source.anatomy.inferred
    assert len(source.anatomy.blocks) == 2
    rows = {"input_ids": torch.randint(3, 96, (3, 12))}
    torch.testing.assert_close(walk(source, rows), reference(folder, rows), atol=1e-5, rtol=1e-5)


def _stages(source):
    return [
        ([linear.path.rpartition(".")[2] for linear in stage.linears], stage.reads.commutes_with)
        for stage in source.anatomy.blocks[0].stages
    ]


def test_parallel_halves_are_one_stage(tmp_path):
    source = open_model(_save(_cohere(), tmp_path))
    assert _stages(source) == [
        (["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], "scale"),
        (["o_proj"], "any"),
        (["down_proj"], "scale"),
    ]


def test_a_norm_after_the_half_is_not_taken_for_one_before_it(tmp_path):
    source = open_model(_save(_olmo2(), tmp_path))
    assert [commutes for _, commutes in _stages(source)] == ["none", "any", "none", "scale"]


def test_fused_queries_keys_and_values_are_left_alone(tmp_path):
    source = open_model(_save(_gpt_neox(), tmp_path))
    assert _stages(source)[:2] == [(["query_key_value"], "scale"), (["dense"], "none")]


def test_experts_held_in_an_unknown_way_are_named(tmp_path):
    settings = {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    folder = _save(hub.GptOssForCausalLM(hub.GptOssConfig(**_TEXT, **settings)), tmp_path)
    source = open_model(folder)
    assert any("experts.gate_up_proj" in line for line in source.anatomy.missing)
    assert not any("router" in linear.path for linear in source.anatomy.linears)
    rows = {"input_ids": torch.randint(3, 96, (2, 12))}
    torch.testing.assert_close(walk(source, rows), reference(folder, rows), atol=1e-5, rtol=1e-5)


def test_calls_that_depend_on_the_number_of_rows_are_refused(tmp_path):
    model = hub.BloomForCausalLM(hub.BloomConfig(vocab_size=96, hidden_size=64, n_layer=2, n_head=4))
    anatomy = open_model(_save(model, tmp_path)).anatomy
    assert not anatomy.blocks
    assert any("depends on the number of rows" in line for line in anatomy.missing)
