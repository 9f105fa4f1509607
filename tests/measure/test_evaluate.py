"""Whole models: a tiny random Llama, BERT and ViT, against transformers' own loss and against each other."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from thrifty.base.errors import InputError
from thrifty.data.load import mask_tokens
from thrifty.measure.evaluate import evaluate, output_of
from thrifty.measure.speed import measure_forward, measure_speed

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=61, **SMALL)).eval()


@pytest.fixture(scope="module")
def rows() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(61, (10, 16), generator=torch.Generator().manual_seed(0))}


def _worse(model: nn.Module) -> nn.Module:
    worse = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in worse.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return worse


def test_perplexity_is_that_of_transformers_own_loss(llama, rows):
    found = evaluate(llama, rows, batch=3)
    with torch.inference_mode():
        loss = llama(**rows, labels=rows["input_ids"]).loss
    assert found["perplexity"]["value"] == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert found["tokens"] == 150


def test_against_the_original_everything_is_paired(llama, rows):
    found = evaluate(_worse(llama), rows, against=llama, batch=4)
    assert found["perplexity"]["before"] == pytest.approx(evaluate(llama, rows)["perplexity"], rel=1e-5)
    assert found["kl"]["value"] > 0 and found["top1_agreement"] < 1
    json.dumps(found, allow_nan=False)
    same = evaluate(llama, rows, against=llama)
    assert same["kl"]["value"] == 0.0 and same["top1_agreement"] == 1.0


def test_batches_do_not_change_the_figures(llama, rows):
    worse = _worse(llama)
    one, other = (evaluate(worse, rows, against=llama, batch=batch) for batch in (1, 10))
    assert one["kl"]["value"] == pytest.approx(other["kl"]["value"], rel=1e-4)


def test_masked_models_are_scored_on_masked_tokens(rows):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=61, **SMALL)).eval()
    masked, targets = mask_tokens(rows["input_ids"], 3, seed=0)
    found = evaluate(_worse(model), {"input_ids": masked}, against=model, kind="masked_lm", targets=targets)
    assert found["tokens"] == int((targets != -100).sum())
    with torch.inference_mode():
        loss = model(input_ids=masked, labels=targets).loss
    assert found["perplexity"]["before"]["value"] == pytest.approx(math.exp(float(loss)), rel=1e-5)
    with pytest.raises(InputError, match="masked"):
        evaluate(model, rows, kind="masked_lm")


def test_classifiers_and_base_models_are_compared_by_their_outputs(rows):
    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=5, **SMALL)).eval()
    images = {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    found = evaluate(_worse(vit), images, against=vit, kind="vision", labels=torch.tensor([0, 1, 2, 3, 4, 0]), batch=4)
    assert found["rows"] == 6 and found["kl"]["value"] > 0 and "accuracy" in found
    bert = BertModel(BertConfig(vocab_size=61, **SMALL)).eval()
    padded = dict(rows) | {"attention_mask": torch.ones_like(rows["input_ids"])}
    padded["attention_mask"][:, 12:] = 0
    found = evaluate(_worse(bert), padded, against=bert, kind="other", batch=4)
    assert found["relative_error"]["value"] > 0 and "kl" not in found
    with pytest.raises(InputError, match="against"):
        evaluate(bert, rows, kind="other")


def test_bad_rows_are_refused(llama, rows):
    with pytest.raises(InputError, match="of one number"):
        evaluate(llama, {"input_ids": rows["input_ids"], "attention_mask": torch.ones(3, 16)})
    with pytest.raises(InputError, match="of one number"):
        evaluate(llama, {})
    with pytest.raises(InputError, match="batch"):
        evaluate(llama, rows, batch=0)
    with pytest.raises(InputError, match="neither logits"):
        output_of(object())


def test_speed_of_two_models_side_by_side(llama, rows):
    found = measure_speed({"before": llama, "after": _worse(llama)}, rows["input_ids"][:2, :8], new_tokens=5, rounds=2)
    for key in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        assert set(found[key]) == {"before", "after"} and min(found[key].values()) > 0
    assert (found["batch"], found["prompt_tokens"], found["new_tokens"], found["rounds"]) == (2, 8, 5, 2)
    assert found["threads"] == torch.get_num_threads()


def test_speed_tells_a_slow_model_from_a_fast_one(llama, rows):
    slow = copy.deepcopy(llama)
    slow.register_forward_pre_hook(lambda *_: __import__("time").sleep(0.02))
    found = measure_speed({"before": llama, "after": slow}, rows["input_ids"][:1, :8], new_tokens=4, rounds=3)
    speeds = found["decode_tokens_per_second"]
    assert speeds["after"] < 50 and speeds["after"] < speeds["before"]


def test_speed_needs_a_model_that_generates(rows):
    bert = BertModel(BertConfig(vocab_size=61, **SMALL)).eval()
    with pytest.raises(InputError, match="does not generate"):
        measure_speed({"before": bert}, rows["input_ids"])
    with pytest.raises(InputError, match="at least 2"):
        measure_speed({}, rows["input_ids"], new_tokens=1)
    found = measure_forward({"before": bert, "after": bert}, rows, rounds=2)
    assert set(found["rows_per_second"]) == {"before", "after"} and found["batch"] == 10
