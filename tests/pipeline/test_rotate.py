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
from thrifty.models import Source, open_model
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


@pytest.mark.parametrize("architecture", ["qwen2", "vit"])
def test_a_part_that_computes_something_else_is_found(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a description had left out a matrix that writes the hidden states, one before the blocks, or one behind them."""
    folder = tiny(architecture, tmp_path / "model")
    rows = {"calibration": inputs(architecture, 2, 24), "evaluation": inputs(architecture, 1, 24)}
    places = module._places
    for role, words in (("fc2" if architecture == "vit" else "down", "layers.0"), ("embed", "before"), ("head", "behind")):

        def without(source: Source, role: str = role) -> dict[str, object]:
            names = {linear.source: linear.role for linear in source.anatomy.linears}
            names |= {f"{source.anatomy.head}.weight": "head"}
            return {key: place for key, place in places(source).items() if names.get(key) != role and not (role == "embed" and role in key)}

        monkeypatch.setattr(module, "_places", without)
        with pytest.raises(InputError, match=f"{words}.* computes something else once"):
            thrifty.compress(folder, recipe({"rotate": {}}, {"rtn": {}}), out=tmp_path / "out", speed=False, **rows)


def test_the_plan_counts_the_head(tmp_path: Path) -> None:
    folder = tiny("qwen2", tmp_path / "model")
    plain, turned = (
        thrifty.plan(folder, recipe(*steps, {"rtn": {}}), out=tmp_path / "out", **ROWS).cost.output for steps in ((), ({"rotate": {}},))
    )
    assert turned - plain == pytest.approx(96 * 64 * 4, abs=300)
