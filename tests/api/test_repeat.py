"""Results found again: from another folder, by another spelling, with the model moved, damaged, exported, rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import thrifty
from tests.api.conftest import WINDOWS, Bench
from thrifty import api
from thrifty.base import events
from thrifty.base.errors import GateError, InputError
from thrifty.measure.certificate import Certificate


def notes(action: Any) -> list[str]:
    said: list[str] = []
    with events.listening(lambda event: said.append(event.message) if event.kind == "note" else None):
        action()
    return said


@pytest.fixture
def copied(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with `model`, the texts, and a recipe that names its text by what stands beside it."""
    shutil.copytree(bench.model, tmp_path / "model")
    shutil.copy(bench.train, tmp_path / "train.txt")
    (tmp_path / "recipes").mkdir()
    shutil.copy(bench.test, tmp_path / "recipes" / "test.txt")
    recipe = {**bench.recipe, "evaluation": {"text": "test.txt", "samples": 4, "tokens": 16}}
    (tmp_path / "recipes" / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_by_relative_paths_is_repeated_from_elsewhere(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = thrifty.compress("model", "recipes/recipe.yaml", "train.txt", out="out", **WINDOWS)
    assert found["data"]["evaluation"]["source"].endswith("test.txt")
    (copied / "elsewhere").mkdir()
    monkeypatch.chdir(copied / "elsewhere")
    assert api.repeat("../out")["equal"]


def test_where_the_model_lies_is_no_part_of_the_run(copied: Path, bench: Bench) -> None:
    request = {"calibration": "train.txt", "out": "out", **WINDOWS}
    first = thrifty.compress("model", "recipes/recipe.yaml", **request)
    assert first["run_key"] == bench.result["run_key"]
    shutil.move(copied / "model", copied / "moved")
    said = notes(lambda: thrifty.compress(copied / "moved", copied / "recipes" / "recipe.yaml", **request))
    assert any("already holds this result" in note for note in said)


def test_a_damaged_result_is_made_again(copied: Path, bench: Bench) -> None:
    def run(**more: Any) -> dict[str, Any]:
        return thrifty.compress("model", "recipes/recipe.yaml", "train.txt", out="out", **WINDOWS, **more)

    run()
    file = copied / "out" / "model.safetensors"
    whole = file.read_bytes()
    for damage in (lambda: file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])), file.unlink):
        damage()
        assert any("not as it was written" in note for note in notes(run))
        assert file.read_bytes() == whole


def test_a_result_that_was_not_loaded_in_transformers_is_not_taken_for_one_that_was(copied: Path) -> None:
    def run(verify: Any) -> dict[str, Any]:
        return thrifty.compress("model", "recipes/recipe.yaml", "train.txt", out="out", verify=verify, **WINDOWS)

    assert run("exact")["verified"] == "exact"
    assert run("full")["verified"] == "full"
    assert any("already holds" in note for note in notes(lambda: run("exact")))
    assert Certificate.read("out").verified == "full"


def test_a_result_is_not_compared_with_itself(bench: Bench) -> None:
    with pytest.raises(InputError, match="is the result itself"):
        api.repeat(bench.out, out=bench.out)


def test_a_rejected_result_is_repeated_and_not_replaced_by_another(bench: Bench, tmp_path: Path) -> None:
    hard = {**bench.request, "recipe": {**bench.recipe, "steps": [{"rtn": {"bits": 2, "group_size": 0}}]}, "max_perplexity_increase": 0}
    with pytest.raises(GateError):
        thrifty.compress(**hard, out=tmp_path / "out")
    assert api.repeat(tmp_path / "out.rejected")["equal"]
    other = {**hard, "seed": 1}
    with pytest.raises(InputError, match="holds a result of another request"):
        thrifty.compress(**other, out=tmp_path / "out")
    with pytest.raises(GateError):
        thrifty.compress(**other, out=tmp_path / "out", force=True)
    assert Certificate.read(tmp_path / "out.rejected").seed == 1


def test_a_dense_export_says_its_own_size_and_no_speed(bench: Bench, tmp_path: Path) -> None:
    written = api.export(bench.out, "dense", tmp_path / "dense")
    found, first = Certificate.read(tmp_path / "dense"), Certificate.read(bench.out)
    assert found.bytes.after == written["bytes"] == (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert found.bits_per_weight == 32 and found.speed is None and found.quality == first.quality
    assert "exported from" in found.warnings[-1]
    for page in ("report.html", "README.md"):
        text = (tmp_path / "dense" / page).read_text()
        assert "smaller" not in text and "tokens/s" not in text
    with pytest.raises(InputError, match="written by thrifty export"):
        api.repeat(tmp_path / "dense")
    with pytest.raises(InputError, match="another request"):
        thrifty.compress(**bench.request, out=tmp_path / "dense")


@pytest.fixture
def on_the_hub(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model in the hub's cache, as a download leaves it."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(bench.model, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "somebody/tiny"


def test_a_model_of_the_hub_goes_all_the_way(bench: Bench, on_the_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = thrifty.compress(**{**bench.request, "model": on_the_hub}, out="out")
    assert found["model"] == on_the_hub and Certificate.read("out").model.revision == "0123456789abcdef0123456789abcdef01234567"
    assert f"base_model: {on_the_hub}" in Path("out/README.md").read_text()
    assert api.describe(on_the_hub).model_type == "llama"
    assert api.try_out("out", "value")["original"]["tokens_per_second"] > 0
    asked = {"text": str(bench.test), "samples": 4, "tokens": 16}
    assert thrifty.evaluate("out", against=on_the_hub, **asked)["kl"] == thrifty.evaluate("out", against=bench.model, **asked)["kl"]
    assert api.repeat("out")["equal"]
