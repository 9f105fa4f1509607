"""The commands with nothing in their way: no argument where one is not needed, no network, one JSON object on standard output."""

from __future__ import annotations

import io
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_bad_input import add_tokenizer, text
from tests.report.test_page import Page
from tests.tiny import tiny
from thrifty.cli.main import main
from thrifty.data import default_model
from thrifty.measure.certificate import Certificate
from thrifty.pipeline.catalogue import load_methods

CONTRACT = {
    "model": str,
    "out": str,
    "recipe": str,
    "seed": int,
    "seconds": float,
    "peak_rss_bytes": int,
    "bytes": {"before": int, "after": int},
    "bits_per_weight": float,
    "perplexity": {side: {"value": float, "low": float, "high": float} for side in ("before", "after")},
    "kl": {"value": float, "low": float, "high": float},
    "top1_agreement": float,
    "quality": [{"metric": str, "before": float, "after": float, "difference": float, "low": float, "high": float}],
    "speed": (dict, type(None)),
    "layers": [{"name": str, "method": str, "bits": float, "sparsity": float, "error": float, "relative_error": float}],
    "warnings": [],
}


@dataclass(frozen=True)
class Said:
    """What a command left with, and what it said where."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        assert self.out.endswith("\n") and self.out.count("\n") == 1, self.out
        return json.loads(self.out)


def say(*words: str | Path) -> Said:
    """Run a command of the program."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(word) for word in words])
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterator[None]:
    """Whoever opens a connection fails."""

    def refuse(*words: Any, **options: Any) -> None:
        raise AssertionError(f"a connection was opened: {words[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@dataclass(frozen=True)
class Small:
    """A tiny model with a text, and two results of it."""

    model: Path
    text: Path
    recipe: Path
    first: Path
    second: Path

    @property
    def words(self) -> list[str | Path]:
        """A `compress` of the model, but for the folder."""
        return ["compress", self.model, "--recipe", self.recipe, "--calibration", self.text, "--samples", "4", "--tokens", "16"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    base = tmp_path_factory.mktemp("small")
    add_tokenizer(tiny("llama", base / "model"))
    text(base / "text.txt")
    recipe = base / "recipe.yaml"
    recipe.write_text(f"evaluation: {{text: {base / 'text.txt'}, samples: 4, tokens: 16}}\nsteps:\n  - gptq: {{bits: 4, group_size: 32}}\n")
    found = Small(base / "model", base / "text.txt", recipe, base / "first", base / "second")
    assert say(*found.words, "--out", found.first, "--json").code == 0
    assert say(*found.words, "--out", found.second, "--seed", "1", "--json").code == 0
    return found


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Said]]:
    """`thrifty compress --json`, and nothing else, in an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("default"))
        yield Path.cwd(), say("compress", "--json")


def fits(value: Any, shape: Any, place: str = "the object") -> None:
    """Fail where the value is not of the shape: types for values, one entry for every entry of a list, at least these keys."""
    if isinstance(shape, dict):
        assert isinstance(value, dict) and value.keys() >= shape.keys(), place
        for key, inner in shape.items():
            fits(value[key], inner, f"{place}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), place
        for index, item in enumerate(value):
            fits(item, shape[0] if shape else str, f"{place}.{index}")
    else:
        assert isinstance(value, shape) and not (shape in (int, float) and isinstance(value, bool)), (place, value)


# -- without an argument -------------------------------------------------------------------------------------------------


def test_compress_needs_no_argument(default: tuple[Path, Said]) -> None:
    place, said = default
    assert said.code == 0
    assert said.err.splitlines()[0] == "recipe: awq + gptq, 4 bit, group 32"
    assert [path.name for path in place.iterdir()] == ["thrifty-result"]
    fits(said.json, CONTRACT)
    assert said.json == Certificate.read(place / "thrifty-result").result("thrifty-result")
    assert 4 <= said.json["bits_per_weight"] < 6 and said.json["bytes"]["after"] < said.json["bytes"]["before"]
    assert 1 < said.json["perplexity"]["before"]["value"] < said.json["perplexity"]["after"]["value"]
    assert 0 < said.json["kl"]["value"] < 0.2 and 0.8 < said.json["top1_agreement"] < 1


def test_the_same_command_again_shows_the_result(default: tuple[Path, Said]) -> None:
    again = say("compress")
    assert again.code == 0 and "already holds this result" in again.err
    for word in ("the model inside the package -> thrifty-result", "perplexity", "KL divergence", "largest errors of", "report.html"):
        assert word in again.out
    assert say("compress", "--json").json == default[1].json


def test_plan_needs_no_argument_and_prices_what_compress_does(default: tuple[Path, Said]) -> None:
    said = say("plan", "--json")
    assert said.code == 0
    assert said.json["cost"]["output"] == pytest.approx(default[1].json["bytes"]["after"], rel=0.01)
    assert said.json["recipe"] == default[1].json["recipe"] and said.json["refusals"] == []


def test_try_needs_only_a_result(default: tuple[Path, Said]) -> None:
    said = say("try", "thrifty-result", "def add(a, b):\n", "--json")
    assert said.code == 0
    fits(
        said.json, {side: {"text": str, "tokens_per_second": float} for side in ("original", "result")} | {"prompt": str, "speedup": float}
    )
    assert said.json["prompt"] == "def add(a, b):\n" and said.json["original"]["text"]


def test_evaluate_needs_no_argument(default: tuple[Path, Said]) -> None:
    said = say("evaluate", "--json")
    assert said.code == 0
    assert said.json["perplexity"]["value"] == pytest.approx(default[1].json["perplexity"]["before"]["value"], rel=0.02)


@pytest.mark.parametrize(
    ("command", "shape"),
    [
        ("describe", {"architecture": str, "kind": str, "blocks": [{"path": str}], "parameters": int}),
        ("recipes", [{"name": str, "summary": str, "text": str}]),
        ("methods", [{"name": str, "family": str, "paper": (dict, type(None)), "summary": str, "parameters": dict}]),
        ("doctor", {"versions": dict, "hardware": dict, "checks": [{"check": str, "fine": bool, "note": str}]}),
    ],
)
def test_commands_that_only_tell_need_no_argument(command: str, shape: Any) -> None:
    said = say(command, "--json")
    assert said.code == 0 and said.json
    fits(said.json, shape)
    shown = say(command)
    assert shown.code == 0 and len(shown.out.splitlines()) > 5
    with pytest.raises(ValueError):
        json.loads(shown.out)


def test_the_model_inside_is_meant(default: tuple[Path, Said]) -> None:
    named = say("describe", default_model(), "--json")
    assert named.json == say("describe", "--json").json
    assert default[1].json["bytes"]["before"] == (default_model() / "model.safetensors").stat().st_size


# -- what is shown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", load_methods())
def test_every_method_is_shown_with_formula_source_and_settings(name: str) -> None:
    said = say("methods", name)
    assert said.code == 0
    method = load_methods()[name]
    formula = next(line.strip() for line in method.explanation().splitlines() if line.startswith("    "))
    flat = " ".join(said.out.split())
    assert " ".join(formula.split()) in flat
    if method.paper is None:
        assert "source no paper" in flat
    else:
        assert method.paper.authors in flat and f"({method.paper.year})" in flat
        assert method.paper.arxiv is None or f"arXiv {method.paper.arxiv}" in flat
        assert f"{method.paper.year:,}" not in said.out, "years are no amounts"
    assert all(setting in said.out for setting in method.parameters())
    assert say("methods", name, "--json").json == {
        **next(entry for entry in say("methods", "--json").json if entry["name"] == name),
        "explanation": method.explanation(),
    }


def test_a_recipe_is_printed_as_it_is(tmp_path: Path) -> None:
    for entry in say("recipes", "--json").json:
        assert say("recipes", entry["name"]).out == entry["text"]
        assert say("recipes", entry["name"], "--json").json == entry


def test_two_results_are_compared(small: Small, tmp_path: Path) -> None:
    said = say("compare", small.first, small.second, "--json")
    assert said.code == 0 and said.err == ""
    assert [row["name"] for row in said.json["results"]] == ["first", "second"]
    assert [row["bits_per_weight"] for row in said.json["results"]] == [Certificate.read(small.first).bits_per_weight] * 2
    shown = say("compare", small.first, small.second, "--out", tmp_path / "compare.html")
    assert "first" in shown.out and "second" in shown.out and "perplexity" in shown.out
    assert "2 results compared" in Page((tmp_path / "compare.html").read_text()).text
    refused = say("compare", small.first, "--out", tmp_path / "compare.html")
    assert refused.code == 2 and "exists; choose another --out" in refused.err


def test_a_result_is_shown_with_what_its_certificate_says(small: Small) -> None:
    said = say(*small.words, "--out", small.first)
    one = Certificate.read(small.first)
    assert said.code == 0 and f"{small.model} -> " in said.out.replace("\n", "")
    assert one.perplexity is not None and one.kl is not None
    for value in (one.perplexity.before.value, one.perplexity.after.value, one.kl.value):
        assert f"{value:.4g}" in said.out
    worst = max(one.layers, key=lambda layer: layer.relative_error)
    assert worst.name in said.out and "gptq (bits 4, group size 32)" in said.out


def test_repeat_and_export_tell_what_they_made(small: Small, tmp_path: Path) -> None:
    said = say("repeat", small.first, "--out", tmp_path / "again", "--json")
    assert said.code == 0 and said.json["equal"] is True
    assert "blocks (2)" in said.err
    said = say("export", small.first, "--to", "dense", "--out", tmp_path / "dense", "--json")
    assert said.code == 0 and said.json["out"] == str(tmp_path / "dense") and (tmp_path / "dense" / "config.json").is_file()
    assert "model-dense" not in say("export", "--help").out and "dense, gguf, thrifty or aqlm" in say("export", "--help").out


# -- the gate ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def strict(small: Small, tmp_path: Path) -> list[str | Path]:
    """A `compress` into `tmp_path / "out"` that loses more than it may."""
    recipe = tmp_path / "hard.yaml"
    recipe.write_text(small.recipe.read_text().replace("gptq: {bits: 4, group_size: 32}", "rtn: {bits: 2, group_size: 0}"))
    words = [recipe if word == small.recipe else word for word in small.words]
    return [*words, "--out", tmp_path / "out", "--max-perplexity-increase", "0%"]


def test_a_failed_gate_keeps_the_result_apart_and_leaves_with_3(strict: list[str | Path], tmp_path: Path) -> None:
    said = say(*strict, "--json")
    assert said.code == 3
    assert said.json["exit_code"] == 3 and "kept apart in" in said.json["error"]
    fits(said.json, CONTRACT | {"gate": {"passed": bool, "reason": str}})
    assert said.json["gate"]["passed"] is False and said.json["out"] == str(tmp_path / "out.rejected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hard.yaml", "out.rejected"]
    assert (tmp_path / "out.rejected" / "model.safetensors").is_file()
    page = Page((tmp_path / "out.rejected" / "report.html").read_text())
    assert "Limit not met" in page.text
    shown = say(*strict)
    assert shown.code == 3 and "limit not met: perplexity rose by" in " ".join(shown.out.split())
    assert shown.err.splitlines()[-1].startswith("error: perplexity rose by")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hard.yaml", "out.rejected"]


def test_a_rejected_result_can_be_looked_at(strict: list[str | Path], small: Small, tmp_path: Path) -> None:
    assert say(*strict, "--json").code == 3
    said = say("compare", small.first, tmp_path / "out.rejected")
    assert said.code == 0 and "note: out.rejected did not meet its limit" in said.out
    assert say("try", tmp_path / "out.rejected", "x = ", "--json").code == 0


def test_a_met_gate_leaves_with_0(small: Small, tmp_path: Path) -> None:
    said = say(*small.words, "--out", tmp_path / "out", "--max-perplexity-increase", "90%")
    assert said.code == 0 and "within the limit: perplexity" in said.out
    shutil.rmtree(tmp_path / "out")
