"""What there is, from Python: a model's anatomy, the methods, the recipes, this machine."""

from __future__ import annotations

import json

import pytest

import thrifty
from tests.api.conftest import Bench
from thrifty import api
from thrifty.base.errors import InputError
from thrifty.base.method import build
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.parse import parse_recipe, shipped, summary


def test_describe_says_what_a_model_is_made_of(bench: Bench) -> None:
    found = thrifty.describe(bench.model)
    assert (found.architecture, found.kind, len(found.blocks), len(found.linears)) == ("LlamaForCausalLM", "causal_lm", 2, 14)
    assert json.loads(json.dumps(found.to_json()))["hidden_size"] == 64


def test_describe_without_a_name_is_of_the_model_inside_the_package() -> None:
    assert thrifty.describe().kind == "causal_lm"


def test_every_method_is_listed_with_what_a_recipe_needs() -> None:
    found = api.methods()
    assert isinstance(found, list) and [entry["name"] for entry in found] == sorted(load_methods())
    for entry in found:
        assert entry.keys() == {"name", "family", "paper", "summary", "parameters"}
        assert entry["family"].partition(".")[0] in ("weights", "structure", "cache", "tune") and entry["summary"].endswith(".")
        assert entry["paper"] is None or entry["paper"].keys() == {"authors", "year", "title", "arxiv", "part"}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("name", load_methods())
def test_a_method_is_shown_with_its_formula(name: str) -> None:
    found = api.methods(name)
    assert isinstance(found, dict) and found["explanation"].startswith(found["summary"])
    assert any(line.startswith("    ") and line.strip() for line in found["explanation"].splitlines()), "an indented formula"


@pytest.mark.parametrize("name", load_methods())
def test_the_defaults_that_are_listed_make_the_method(name: str) -> None:
    from thrifty.recipe.settings import build_method

    found = api.methods(name)
    assert isinstance(found, dict)
    defaults = {key: schema["default"] for key, schema in found["parameters"].items()}
    assert build_method(name, defaults) == build(name, {})


def test_every_recipe_is_listed_with_its_text() -> None:
    found = api.recipes()
    assert isinstance(found, list) and [entry["name"] for entry in found] == list(shipped())
    for entry in found:
        assert parse_recipe(entry["text"]) == parse_recipe(entry["name"]) and entry["summary"] == summary(entry["text"]) != ""
        assert api.recipes(entry["name"]) == entry


def test_what_is_not_there_is_refused_with_what_is_near() -> None:
    with pytest.raises(InputError, match="did you mean 'gptq'"):
        api.methods("gtpq")
    with pytest.raises(InputError, match="did you mean 'w4'"):
        api.recipes("w44")


def test_the_machine_is_told() -> None:
    found = api.doctor()
    assert found.keys() == {"versions", "hardware", "checks"}
    assert all(check.keys() == {"check", "fine", "note"} and isinstance(check["fine"], bool) for check in found["checks"])
    assert next(check for check in found["checks"] if check["check"] == "model inside the package")["fine"]
    assert found["versions"].keys() >= {"python", "torch", "transformers"} and found["hardware"]["ram_bytes"] > 1 << 28
