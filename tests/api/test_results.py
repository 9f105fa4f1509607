"""What is done with results from Python: load, evaluate, compare, export, try out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import thrifty
from tests.api.conftest import Bench
from tests.report.test_page import Page
from tests.tiny import inputs
from thrifty import api
from thrifty.base.errors import InputError
from thrifty.cache.kivi import KIVI


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs("llama", 2, 12)).logits


def test_load_gives_the_model_and_the_result_as_transformers_reads_them(bench: Bench) -> None:
    plain = AutoModelForCausalLM.from_pretrained(bench.model, dtype=torch.float32)
    assert torch.equal(logits(thrifty.load(bench.model)), logits(plain))
    ours = thrifty.load(bench.out, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(bench.out, dtype=torch.float32)
    assert not ours.training
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(ours), logits(plain), atol=1e-3)


def test_load_computes_in_bfloat16_where_weights_are_packed(bench: Bench) -> None:
    assert thrifty.load(bench.out).dtype == torch.bfloat16
    assert thrifty.load(bench.model).dtype == torch.float32


def test_evaluate_finds_what_the_certificate_says(bench: Bench) -> None:
    found = thrifty.evaluate(bench.out, against=bench.model, text=str(bench.test), samples=4, tokens=16)
    assert (found["model"], found["against"], found["text"]) == (str(bench.out), str(bench.model), str(bench.test))
    assert (found["windows"], found["tokens"]) == (4, 60)
    for side in ("before", "after"):
        assert found["perplexity"][side]["value"] == pytest.approx(bench.result["perplexity"][side]["value"], rel=1e-4)
    assert found["kl"]["value"] == pytest.approx(bench.result["kl"]["value"], rel=1e-2)
    assert found["top1_agreement"] == pytest.approx(bench.result["top1_agreement"], abs=1 / 60)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_evaluate_alone_is_the_perplexity_of_transformers(bench: Bench) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    ids = torch.tensor(tokenizer(bench.test.read_text())["input_ids"])
    windows = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    found = thrifty.evaluate(bench.model, text=str(bench.test), tokens=32, samples=len(windows))
    model = AutoModelForCausalLM.from_pretrained(bench.model)
    with torch.inference_mode():
        losses = [float(model(input_ids=window[None], labels=window[None]).loss) for window in windows]
    assert found["windows"] == len(windows) and found["tokens"] == 31 * len(windows)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]


def test_a_model_loses_nothing_against_itself(bench: Bench) -> None:
    found = thrifty.evaluate(bench.model, against=bench.model, text=[str(bench.train), str(bench.test)], samples=3, tokens=16)
    assert found["kl"]["value"] == pytest.approx(0, abs=1e-9) and found["top1_agreement"] == 1
    assert found["perplexity"]["before"] == found["perplexity"]["after"]


def test_compare_reads_the_certificates(bench: Bench, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    other = thrifty.compress(**{**bench.request, "recipe": {**bench.recipe, "steps": [{"rtn": {"bits": 8}}]}}, out=tmp_path / "other")
    found = api.compare([bench.out, other["out"]], out=page).to_json()
    first, second = found["results"]
    for row, result in ((first, bench.result), (second, other)):
        for key in ("bytes", "bits_per_weight", "kl", "top1_agreement", "seconds", "peak_rss_bytes", "recipe"):
            assert row[key] == (result[key]["after"] if key == "bytes" else result[key])
        assert row["perplexity"] == result["perplexity"]["after"]
    assert first["bits_per_weight"] < second["bits_per_weight"] and first["kl"]["value"] > second["kl"]["value"]
    assert found["notes"] == []
    assert "2 results compared" in Page(page.read_text()).text
    with pytest.raises(InputError, match="exists"):
        api.compare([bench.out], out=page)
    with pytest.raises(InputError, match="not a folder"):
        api.compare([bench.out], out=page / "inside.html")
    with pytest.raises(InputError, match=r"certificate\.json"):
        api.compare([bench.out, bench.model])


def test_an_exported_result_computes_the_same(bench: Bench, tmp_path: Path) -> None:
    found = api.export(bench.out, "dense", tmp_path / "dense")
    assert (found["format"], found["out"]) == ("dense", str(tmp_path / "dense"))
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    torch.testing.assert_close(logits(dense), logits(thrifty.load(bench.out, dtype=torch.float32)), atol=1e-4, rtol=1e-4)


def test_trying_out_with_a_packed_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is packed yet both answer as ever; the default prompt is long enough for something to be."""
    plain = api.try_out(bench.out, "value_1 = ", new_tokens=5)
    short = api.try_out(bench.out, "value_1 = ", new_tokens=5, cache="kivi: {bits: 4, group_size: 16}")
    assert short["cache"] == {"kivi": {"bits": 4, "group_size": 16, "residual_length": 128, "keys": "channel"}}
    for side in ("original", "result"):
        assert short[side]["text"] == plain[side]["text"]
        assert short[side].keys() == {"text", "tokens_per_second", "cache_bytes", "plain_cache_bytes"}
        assert 0 < short[side]["cache_bytes"] == short[side]["plain_cache_bytes"]
    small = KIVI(group_size=16, residual_length=16)
    long = api.try_out(bench.out, new_tokens=5, cache=small, memory="64GB")
    tokens = AutoTokenizer.from_pretrained(bench.model)(long["prompt"])["input_ids"]
    assert len(tokens) > 64 and long["original"]["memory"]
    model = AutoModelForCausalLM.from_pretrained(bench.model)
    past = thrifty.kv_cache(model, small)
    model.generate(torch.tensor([tokens]), past_key_values=past, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert (long["original"]["cache_bytes"], long["original"]["plain_cache_bytes"]) == (past.nbytes, past.plain_nbytes)
    assert past.nbytes < past.plain_nbytes / 2
    # what cannot be is refused before a model is loaded
    monkeypatch.setattr("thrifty.api.results.load", None)
    for wrong, message in (
        ("kivi", "group_size 32 does not divide the head size 16"),
        ("kivi: {bits: 1}", "bits is wrong"),
        ("kiwi", "did you mean 'kivi'"),
    ):
        with pytest.raises(InputError, match=message):
            api.try_out(bench.out, cache=wrong)


def test_trying_out_lets_both_continue(bench: Bench) -> None:
    found = api.try_out(bench.out, "value_1 = ", new_tokens=5)
    assert found["prompt"] == "value_1 = " and 0 <= found["same_tokens"] <= 5
    for side in ("original", "result"):
        assert found[side].keys() == {"text", "tokens_per_second"} and found[side]["tokens_per_second"] > 0
    speeds = [found[side]["tokens_per_second"] for side in ("result", "original")]
    assert found["speedup"] == pytest.approx(speeds[0] / speeds[1])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(bench.model), AutoTokenizer.from_pretrained(bench.model)
    words = tokenizer("value_1 = ", return_tensors="pt")
    answer = model.generate(input_ids=words["input_ids"], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert found["original"]["text"] == tokenizer.decode(answer[0, words["input_ids"].shape[1] :], skip_special_tokens=True)
    within = api.try_out(bench.out, "value_1 = ", new_tokens=5, memory="64GB")
    assert [within[side]["text"] for side in ("original", "result")] == [found[side]["text"] for side in ("original", "result")]
    assert all(within[side]["memory"].startswith("everything in memory; at most") for side in ("original", "result"))
