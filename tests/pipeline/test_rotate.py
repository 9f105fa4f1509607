"""A run whose first step turns the whole model: the original judges it, and plain transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import thrifty
from tests.tiny import inputs, tiny
from thrifty.base.errors import InputError
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.models import rotated as module

ROWS = {"calibration": inputs("qwen2", 4, 24), "evaluation": inputs("qwen2", 2, 24, seed=1)}


def recipe(*steps: object) -> dict[str, object]:
    return {"steps": list(steps)}


@pytest.mark.parametrize(("architecture", "dtype"), [("qwen2", torch.float32), ("gpt2", torch.bfloat16)], ids=lambda value: str(value))
def test_eight_bits_of_a_turned_model_are_close_to_the_original(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder, out = tiny(architecture, tmp_path / "model", dtype=dtype), tmp_path / "out"
    steps = recipe({"rotate": {}}, {"hadamard": {}}, {"rtn": {"bits": 8, "group_size": 0}})
    found = thrifty.compress(folder, steps, out=out, verify="full", speed=False, **ROWS)
    config, plain = json.loads((out / "config.json").read_text()), open_model(folder)
    assert config["tie_word_embeddings"] is False and plain.anatomy.tied
    certificate = Certificate.read(out)
    assert all(layer.method == "rotate+hadamard+rtn" for layer in certificate.layers)
    straight = thrifty.compress(folder, recipe({"rtn": {"bits": 8, "group_size": 0}}), out=tmp_path / "plain", speed=False, **ROWS)
    assert found["perplexity"]["before"] == pytest.approx(straight["perplexity"]["before"], rel=1e-6)  # judged by the original
    assert 0 < found["kl"]["value"] < 10 * straight["kl"]["value"] + 1e-4


def test_a_step_that_turns_all_stands_first_and_alone(tmp_path: Path) -> None:
    folder = tiny("qwen2", tmp_path / "model")
    for steps, words in (
        ((({"rtn": {}}), {"rotate": {}}), "must be the first step"),
        (({"rotate": {}},), "only rewrites weights"),
        (({"rotate": {}, "only": "*.q_proj"}, {"rtn": {}}), "only and skip cannot"),
        (({"rotate": {}, "override": {"*.q_proj": {"seed": 1}}}, {"rtn": {}}), "override cannot"),
    ):
        with pytest.raises(InputError, match=words):
            thrifty.compress(folder, recipe(*steps), out=tmp_path / "out", **ROWS)


def test_a_block_that_computes_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a description had left out that a matrix writes into the hidden states."""
    monkeypatch.setattr(module, "WRITERS", ("o",))
    with pytest.raises(InputError, match=r"layers\.0 computes something else once its hidden states are rotated"):
        thrifty.compress(tiny("qwen2", tmp_path / "model"), recipe({"rotate": {}}, {"rtn": {}}), out=tmp_path / "out", **ROWS)


def test_the_plan_counts_the_head(tmp_path: Path) -> None:
    folder = tiny("qwen2", tmp_path / "model")
    plain, turned = (
        thrifty.plan(folder, recipe(*steps, {"rtn": {}}), out=tmp_path / "out", **ROWS).cost.output for steps in ((), ({"rotate": {}},))
    )
    assert turned - plain == pytest.approx(96 * 64 * 4, abs=300)
