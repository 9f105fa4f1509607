"""`thrifty.compress` and `thrifty.plan` from Python: what may be given, what comes back, and that it comes back alike."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import thrifty
from tests.api.conftest import WINDOWS, Bench
from tests.tiny import inputs, tiny
from thrifty import api
from thrifty.base.errors import GateError, InputError, RunError
from thrifty.base.events import Event, listening
from thrifty.measure.certificate import Certificate
from thrifty.recipe.parse import parse_recipe

VALUE = {"value", "low", "high"}
QUALITY = {"metric", "before", "after", "difference", "low", "high"}
LAYER = {"name", "method", "bits", "sparsity", "error", "relative_error"}
CONTRACT = {
    "model",
    "out",
    "recipe",
    "seed",
    "seconds",
    "peak_rss_bytes",
    "bytes",
    "bits_per_weight",
    "perplexity",
    "kl",
    "top1_agreement",
    "quality",
    "speed",
    "layers",
    "warnings",
}
STEPS = "gptq: {bits: 4, group_size: 32}"


def weights(folder: str | Path) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes() + (Path(folder) / "config.json").read_bytes()


def rows(count: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    return inputs("llama", count, 16, seed)


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_what_comes_back_holds_every_promised_figure(bench: Bench) -> None:
    found = dict(bench.result)
    assert found.keys() >= CONTRACT
    assert (found["model"], found["out"], found["seed"]) == (str(bench.model), str(bench.out), 0)
    assert parse_recipe(found["recipe"]).steps[0].method == "gptq"
    assert found["perplexity"].keys() == {"before", "after"}
    for value in (*found["perplexity"].values(), found["kl"]):
        assert value.keys() == VALUE
        assert value["low"] <= value["value"] <= value["high"]
    assert 0 <= found["top1_agreement"] <= 1 < found["perplexity"]["before"]["value"]
    assert found["bytes"].keys() == {"before", "after"} and 0 < found["bytes"]["after"] < found["bytes"]["before"]
    assert 4 < found["bits_per_weight"] < 5
    assert found["seconds"] > 0 and found["peak_rss_bytes"] > 10_000_000
    assert found["quality"] and all(row.keys() == QUALITY for row in found["quality"])
    assert {row["metric"] for row in found["quality"]} >= {"perplexity", "kl", "top1_agreement"}
    assert len(found["layers"]) == 14 and all(row.keys() >= LAYER for row in found["layers"])
    assert all(row["bits"] == 4 and 0 < row["relative_error"] < 0.1 for row in found["layers"])
    assert (found["warnings"] == [] and found["speed"] is None) or found["speed"].keys() >= {"decode_tokens_per_second"}


def test_what_comes_back_is_plain_and_stands_in_the_folder(bench: Bench) -> None:
    assert json.loads(json.dumps(bench.result, allow_nan=False)) == bench.result
    written = json.loads((bench.out / "certificate.json").read_text())
    assert bench.result == {**written, "model": written["model"]["name"], "out": str(bench.out)}
    assert {path.name for path in bench.out.iterdir()} >= {"model.safetensors", "config.json", "report.html", "README.md", "tokenizer.json"}


def test_the_files_that_people_read_tell_the_same(bench: Bench) -> None:
    from thrifty.report.headline import headline
    from thrifty.report.page import render_report

    one = Certificate.read(bench.out)
    assert (bench.out / "report.html").read_text() == render_report(one)
    card = (bench.out / "README.md").read_text()
    assert card.count("# out\n") == 1 and 'from_pretrained("out"' in card
    for row in headline(one):
        assert f"| {row.what} | {row.before} | {row.after} | {row.change} |" in card
    assert f"thrifty compress {bench.model} --recipe recipe.yaml --calibration {bench.train} --samples 8 --tokens 16 --seed 0" in card


def test_the_sizes_are_those_of_the_files(bench: Bench) -> None:
    sizes = {name: (folder / "model.safetensors").stat().st_size for name, folder in (("before", bench.model), ("after", bench.out))}
    assert bench.result["bytes"] == sizes


# -- what may be given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["values", "text", "file", "path", "parsed", "step"])
def test_a_recipe_may_be_given_in_every_form(bench: Bench, tmp_path: Path, form: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"# odd: 'characters' \\ ünïcødé\nsteps:\n  - {STEPS}\n", encoding="utf-8")
    given: dict[str, Any] = {
        "values": {"steps": [{"gptq": {"bits": 4, "group_size": 32}}]},
        "text": f"steps: [{STEPS}]",
        "file": str(file),
        "path": file,
        "parsed": parse_recipe(STEPS),
        "step": STEPS,
    }
    found = thrifty.compress(bench.model, given[form], rows(), out=tmp_path / "out")
    assert weights(tmp_path / "out") == weights(thrifty.compress(bench.model, STEPS, rows(), out=tmp_path / "other")["out"])
    assert found["recipe"] == thrifty.plan(bench.model, STEPS, rows()).recipe


def test_a_result_may_be_called_as_its_recipe(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = {**bench.request, "recipe": "w8", "evaluation": str(bench.test), "speed": False}
    first = thrifty.compress(**request, out="w8")
    assert thrifty.compress(**request, out="w8")["seconds"] == first["seconds"]


def test_a_leading_tilde_is_the_home(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in (bench.train, bench.test):
        shutil.copy(path, tmp_path)
    shutil.copytree(bench.model, tmp_path / "model")
    recipe = {**bench.recipe, "evaluation": {**bench.recipe["evaluation"], "text": f"~/{bench.test.name}"}}
    request = {"model": "~/model", "recipe": recipe, "calibration": f"~/{bench.train.name}", **WINDOWS}
    assert thrifty.compress(**request, out="~/out")["run_key"] == bench.result["run_key"]
    assert api.try_out("~/out", "x", new_tokens=1)["prompt"] == "x"
    assert thrifty.evaluate("~/out", text=f"~/{bench.test.name}", samples=2, tokens=16)["windows"] == 2
    assert len(api.compare(["~/out"], out="~/page.html").results) == 1
    assert api.export("~/out", "dense", "~/dense")["out"] == str(tmp_path / "dense")
    assert {path.name for path in tmp_path.iterdir()} >= {"out", "page.html", "dense"} and not (tmp_path / "~").exists()


def test_calibration_may_be_given_as_tensors(bench: Bench, tmp_path: Path) -> None:
    found = thrifty.compress(bench.model, STEPS, rows(6), evaluation=rows(3, seed=1), out=tmp_path / "out")
    data = found["data"]
    assert (data["calibration"]["rows"], data["calibration"]["tokens"], data["evaluation"]["rows"]) == (6, 96, 3)
    assert found["scored"] == {"windows": 3, "tokens": 45} and found["kl"]["value"] > 0
    # The statistics are those of the tensors: others give other weights.
    assert weights(found["out"]) != weights(thrifty.compress(bench.model, STEPS, rows(6, seed=2), out=tmp_path / "other")["out"])


def test_without_rows_to_measure_on_nothing_is_claimed(bench: Bench, tmp_path: Path) -> None:
    found = thrifty.compress(bench.model, STEPS, rows(), out=tmp_path / "out")
    assert found["perplexity"] is found["kl"] is found["top1_agreement"] is found["data"]["evaluation"] is None
    assert found["quality"] == [] and found["bytes"]["after"] < found["bytes"]["before"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The quality was not measured." in page and "perplexity" not in page


def test_tensors_that_no_file_remembers_cannot_be_repeated(bench: Bench, tmp_path: Path) -> None:
    thrifty.compress(bench.model, STEPS, rows(), out=tmp_path / "out")
    assert "--calibration YOUR-TEXT" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="given by a program"):
        api.repeat(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("calibration", "word"),
    [
        ({}, "no tensors"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "no rows"),
        ({"input_ids": torch.zeros(2, 4, dtype=torch.long), "attention_mask": torch.ones(3, 4)}, "number of rows"),
        ({"input_ids": [[1, 2]]}, "not a tensor"),
    ],
)
def test_tensors_that_cannot_be_rows_are_refused(bench: Bench, tmp_path: Path, calibration: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        thrifty.compress(bench.model, STEPS, calibration, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_sees_is_measured_by_its_output(tmp_path: Path) -> None:
    model = tiny("vit", tmp_path / "model")
    found = thrifty.compress(model, STEPS, inputs("vit", 6, 0), evaluation=inputs("vit", 5, 0, seed=1), out=tmp_path / "out")
    assert found["perplexity"] is None and found["relative_error"].keys() == VALUE
    assert 0 < found["relative_error"]["value"] < 0.1 and found["kl"]["value"] > 0 and found["scored"] == {"rows": 5}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "relative error of the output" in page and "perplexity" not in page
    pixels = inputs("vit", 5, 0, seed=1)
    with torch.inference_mode():
        before, after = (thrifty.load(folder, dtype=torch.float32)(**pixels).logits for folder in (model, found["out"]))
    error = float((before - after).square().sum() / before.square().sum())
    assert found["relative_error"]["value"] == pytest.approx(error, rel=1e-3)


# -- alike --------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_samples(bench: Bench, tmp_path: Path) -> None:
    same = thrifty.compress(**bench.request, out=tmp_path / "same", seed=0)
    other = thrifty.compress(**bench.request, out=tmp_path / "other", seed=1)
    assert weights(same["out"]) == weights(bench.out) != weights(other["out"])
    figures = CONTRACT - {"out", "seconds", "peak_rss_bytes", "speed"}
    assert {key: same[key] for key in figures} == {key: bench.result[key] for key in figures}
    assert same["run_key"] == bench.result["run_key"] != other["run_key"]
    assert other["data"]["calibration"]["samples"] != same["data"]["calibration"]["samples"]


def test_a_finished_result_is_returned_and_not_made_again(bench: Bench) -> None:
    before = {path: path.stat().st_mtime_ns for path in bench.out.iterdir()}
    assert thrifty.compress(**bench.request, out=bench.out) == bench.result
    assert {path: path.stat().st_mtime_ns for path in bench.out.iterdir()} == before


def test_a_run_can_be_repeated_and_a_changed_result_is_told(bench: Bench, tmp_path: Path) -> None:
    found = thrifty.compress(**bench.request, out=tmp_path / "out")
    assert api.repeat(tmp_path / "out") == {
        "folder": str(tmp_path / "out"),
        "out": str(tmp_path / "out.repeat"),
        "equal": True,
        "files": [{"file": name, "equal": True} for name in ("config.json", "model.safetensors")],
    }
    content = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(RunError, match=r"model\.safetensors in .* differ"):
        api.repeat(found["out"], out=tmp_path / "again")


# -- the gate and the plan -----------------------------------------------------------------------------------------------


def test_a_result_that_misses_its_gate_comes_with_the_error(bench: Bench, tmp_path: Path) -> None:
    hard = {**bench.request, "recipe": {**bench.recipe, "steps": [{"rtn": {"bits": 2, "group_size": 0}}]}}
    with pytest.raises(GateError, match=r"kept apart in .*out\.rejected") as caught:
        thrifty.compress(**hard, out=tmp_path / "out", max_perplexity_increase=0.0)
    found = caught.value.result
    assert found is not None and found.keys() >= CONTRACT
    assert found["gate"]["passed"] is False and found["out"] == str(tmp_path / "out.rejected")
    assert found == Certificate.read(found["out"]).result(found["out"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.rejected"]
    with pytest.raises(GateError) as again:
        thrifty.compress(**hard, out=tmp_path / "out", max_perplexity_increase=0.0)
    assert again.value.result == found


def test_a_result_that_meets_its_gate_says_so(bench: Bench, tmp_path: Path) -> None:
    found = thrifty.compress(**bench.request, out=tmp_path / "out", max_perplexity_increase=0.9)
    assert found["gate"]["passed"] is True and "Within the limit" in (tmp_path / "out" / "report.html").read_text()


def test_a_plan_writes_nothing_and_knows_the_size(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = thrifty.plan(**bench.request)
    assert not list(tmp_path.iterdir())
    assert found.to_json()["cost"]["output"] == pytest.approx(bench.result["bytes"]["after"], rel=0.01)
    assert found.recipe == bench.result["recipe"] and found.out == "thrifty-result"
    assert found.cost.memory > 0 and found.cost.disk > 0 and found.cost.seconds > 0 and not found.refusals
    assert json.loads(json.dumps(found.to_json())) == found.to_json() | {"refusals": [], "warnings": []}


def test_what_does_not_fit_is_refused_with_the_number_and_the_setting(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("thrifty.api.compress")
    monkeypatch.setattr(module, "hardware", lambda: {"ram_bytes": 1_000_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10})())
    memory, disk = thrifty.plan(**bench.request).refusals
    assert "of memory" in memory and "1.00 MB" in memory and "use " in memory
    assert "of disk" in disk and "10 B free" in disk and "--out" in disk
    with pytest.raises(InputError, match=r"does not fit here: it needs .* of memory .*; it needs .* of disk"):
        thrifty.compress(**bench.request, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_fits_the_machine_but_not_what_is_free_is_said(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("thrifty.api.compress")
    monkeypatch.setattr(module, "free_bytes", lambda: 0)
    monkeypatch.setattr(module, "rss_bytes", lambda: 1_000_000)
    said: list[Event] = []
    with listening(said.append):
        thrifty.compress(**bench.request, out=tmp_path / "out")
    assert any("1.00 MB are free now" in event.message for event in said if event.kind == "note")


def test_a_plan_counts_both_models_where_they_are_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("thrifty.api.compress")
    monkeypatch.setattr(module, "_seconds", lambda *_: 1.0)
    monkeypatch.setattr(module, "memory_needed", lambda source: 1 << 50)
    assert not thrifty.plan(**bench.request).refusals, "nothing was to be asked"
    found = thrifty.plan(**bench.request, check="safety")
    assert found.cost.memory >= found.cost.parts["asking"] == 1 << 50
    assert "asking takes most" in found.refusals[0] and "leave out --check safety" in found.refusals[0]
    with pytest.raises(InputError, match="pairs are what --check safety asks"):
        thrifty.plan(**bench.request, pairs="pairs.jsonl")


def test_two_ways_to_say_what_to_do_are_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of them"):
        thrifty.compress(bench.model, STEPS, rows(), bits=4, out=tmp_path / "out")
    with pytest.raises(InputError, match="seed"):
        thrifty.compress(bench.model, STEPS, rows(), seed=-1, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_bits_take_the_shipped_recipe(bench: Bench, tmp_path: Path) -> None:
    found = thrifty.compress(bench.model, None, rows(), bits=8, out=tmp_path / "out")
    assert {layer["bits"] for layer in found["layers"]} == {8.0}
    packed = load_file(tmp_path / "out" / "model.safetensors")
    assert any(name.endswith("weight_packed") for name in packed)
