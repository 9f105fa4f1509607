"""The model card: front matter that any YAML reader takes, the certificate's table, and code that runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from hypothesis import given
from hypothesis import strategies as st

import thrifty
from tests.tiny import inputs, tiny
from thrifty.api import pages
from thrifty.export.card import brings_code, classes_of, license_of, model_card
from thrifty.measure.certificate import Certificate
from thrifty.report.headline import markdown

PARTS: dict[str, Any] = {
    "name": "small",
    "base_model": "owner/model",
    "license": {"license": "apache-2.0"},
    "classes": ("AutoModelForCausalLM", "AutoTokenizer"),
    "table": "| | original | result |\n|---|---:|---:|\n| weight files | 2 GB | 1 GB |",
    "recipe_yaml": "steps:\n- rtn:\n    bits: 4\n",
    "quantized": True,
    "command": "thrifty compress owner/model --recipe recipe.yaml --seed 0",
    "library_note": "thrifty 1; torch 2",
}


def card(**changes: Any) -> str:
    return model_card(**{**PARTS, **changes})


def front_of(text: str) -> dict[str, Any]:
    """The front matter as the hub reads it: between the first two lines of three dashes."""
    lines = text.split("\n")
    assert lines[0] == "---"
    return yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))


def python_of(text: str) -> str:
    """The code that loads the result."""
    return text.split("```python\n")[1].split("\n```")[0]


# -- front matter ------------------------------------------------------------------------------------------------------


def test_front_matter() -> None:
    assert front_of(card()) == {
        "base_model": "owner/model",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "library_name": "transformers",
        "tags": ["thrifty", "compressed"],
    }


@pytest.mark.parametrize(
    ("base_model", "named"),
    [
        ("meta-llama/Llama-3.2-1B", True),
        ("owner_1/model.v2_x-y", True),
        ("/home/somebody/model", False),
        ("./models/llama", False),
        ("models/my model", False),
        ("models/a: b #c", False),
        ("a/b/c", False),
        ("llama", False),
        ("pycode, the model inside the package", False),
        ("owner/model\nlicense: mit", False),
    ],
)
def test_only_a_hub_id_is_named_as_the_base_model(base_model: str, named: bool) -> None:
    front = front_of(card(base_model=base_model))
    assert front.get("base_model") == (base_model if named else None)
    assert ("base_model_relation" in front) == named
    assert front["license"] == "apache-2.0"
    assert f"Made from `{base_model}`" in card(base_model=base_model)


# File names may hold any character, line breaks among them.
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


@given(name=names, license=names, link=names)
def test_odd_names_stay_valid(name: str, license: str, link: str) -> None:
    text = card(name=name, license={"license": license, "license_link": link})
    front = front_of(text)
    assert (front["license"], front["license_link"], front["tags"]) == (license, link, ["thrifty", "compressed"])
    strings = [node.value for node in ast.walk(ast.parse(python_of(text))) if isinstance(node, ast.Constant)]
    assert strings.count(name) >= 2 and set(strings) == {name, "auto"}
    assert f"# {' '.join(name.split())}\n" in text


@pytest.mark.parametrize("name", ["a: b", "- x", "{y}", 'quo"te', "back\\slash", "---", "yes", "#", "caf\u00e9", "{name} {0}", "a\n---\nb"])
def test_the_oddest_of_names(name: str) -> None:
    text = card(name=name, license={"license": name})
    assert front_of(text)["license"] == name
    assert any(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(ast.parse(python_of(text))))


# -- text --------------------------------------------------------------------------------------------------------------


def test_everything_that_it_was_given_stands_in_it() -> None:
    text = card()
    for part in ("table", "command", "library_note"):
        assert text.count(PARTS[part]) == 1
    assert yaml.safe_load(text.split("```yaml\n")[1].split("\n```")[0]) == yaml.safe_load(PARTS["recipe_yaml"])
    assert "\n# small\n" in text and "`owner/model`" in text
    # Markdown needs an empty line before a table.
    assert f"\n\n{PARTS['table']}\n\n" in text


def test_no_recipe_ends_its_block() -> None:
    recipe = "note: '```'\nother: '````x'\n"
    text = card(recipe_yaml=recipe)
    (fence,) = re.findall(r"^(`{3,})yaml$", text, re.MULTILINE)
    assert text.split(f"{fence}yaml\n")[1].split(f"\n{fence}\n")[0] == recipe.strip()


# -- license and classes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\n# x\n", {"license": "mit"}),
        (
            "---\ntags: [a]\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("---\r\nlicense: mit\r\n---\r\n# x\r\n", {"license": "mit"}),
        ("\ufeff---\nlicense: [mit, apache-2.0]\n---", {"license": ["mit", "apache-2.0"]}),
        ("---\nlanguage: en\n---\nlicense: mit\n", {}),
        ("# x\n\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: {\n---\n", {}),
        ("---\n- license\n---\n", {}),
        ("---\nlicense:\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_the_license_is_that_of_the_original_card(readme: str | None, expected: dict[str, Any], tmp_path: Path) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme.encode())
    assert license_of(tmp_path) == expected
    front = front_of(card(license=license_of(tmp_path)))
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected


def test_a_card_that_is_not_text_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert license_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, [], ("AutoModelForCausalLM", "AutoTokenizer")),
        ({"architectures": ["BertForMaskedLM"]}, [], ("BertForMaskedLM", "AutoTokenizer")),
        ({"architectures": ["ViTForImageClassification"]}, ["preprocessor_config.json"], ("ViTForImageClassification", "AutoProcessor")),
        (
            {"architectures": ["LlavaForConditionalGeneration"]},
            ["processor_config.json"],
            ("LlavaForConditionalGeneration", "AutoProcessor"),
        ),
        (
            {
                "architectures": ["UnevenViTForImageClassification"],
                "auto_map": {
                    "AutoConfig": "modeling_uneven.UnevenViTConfig",
                    "AutoModel": "modeling_uneven.UnevenViTModel",
                    "AutoModelForImageClassification": "modeling_uneven.UnevenViTForImageClassification",
                },
            },
            ["preprocessor_config.json"],
            ("AutoModelForImageClassification", "AutoProcessor"),
        ),
        ({"architectures": None}, [], ("AutoModelForCausalLM", "AutoTokenizer")),
        ({}, [], ("AutoModelForCausalLM", "AutoTokenizer")),
    ],
)
def test_the_classes_that_load_it(config: dict[str, Any], files: list[str], expected: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in files:
        (tmp_path / name).write_text("{}")
    assert classes_of(tmp_path) == expected
    code = python_of(card(classes=expected, own_code=brings_code(tmp_path)))
    assert ("trust_remote_code=True" in code) == ("auto_map" in config)
    (imported,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert {alias.name for alias in imported.names} == set(expected)
    assert all(hasattr(transformers, name) for name in expected)
    assert f"model = {expected[0]}.from_pretrained" in code and f" = {expected[1]}.from_pretrained" in code


# -- the card of a result ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "loads"), [("llama", "AutoModelForCausalLM"), ("vit", "ViTForImageClassification")])
def test_the_card_of_a_result(name: str, loads: str, tmp_path: Path) -> None:
    model, out = tiny(name, tmp_path / "model"), tmp_path / "a small: one"
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: own-1.0\n---\n# the original\n")
    recipe = {"steps": [{"rtn": {"bits": 4, "group_size": 32}}]}
    thrifty.compress(model, recipe, inputs(name, 2, 16), evaluation=inputs(name, 2, 16, seed=1), out=out, speed=False)
    text = (out / "README.md").read_text()
    front = front_of(text)
    assert (front["license"], front["license_name"]) == ("other", "own-1.0") and "base_model" not in front
    assert markdown(Certificate.read(out)) in text
    code = python_of(text).replace('"a small: one"', repr(str(out)))
    # The lines that load the model run; this one has nothing that prepares its inputs.
    loading = "\n".join(line for line in code.splitlines() if "Auto" not in line or loads in line)
    place: dict[str, Any] = {}
    exec(loading, place)
    assert type(place["model"]).__name__ == json.loads((model / "config.json").read_text())["architectures"][0]


@pytest.mark.parametrize(
    ("steps", "relation"),
    [
        (["rtn: {bits: 4, group_size: 32}"], "quantized"),
        (["wanda: {sparsity: 0.5}"], "finetune"),
        (["wanda: {sparsity: 0.5}", "gptq: {bits: 4, group_size: 32}"], "quantized"),
        (["magnitude_units: {ratio: 0.5}"], "finetune"),
        (["magnitude_units: {ratio: 0.5}", "rtn: {bits: 8, group_size: 0}"], "quantized"),
    ],
)
def test_what_the_hub_calls_it(steps: list[str], relation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the hub's words (adapter, finetune, merge, quantized) only one says that weights are rounded."""
    model, found = tiny("llama", tmp_path / "model"), {}
    monkeypatch.setattr(pages, "model_card", lambda **words: found.update(words) or card(quantized=words["quantized"]))
    recipe = {"steps": [yaml.safe_load(step) for step in steps]}
    words = {"evaluation": inputs("llama", 2, 16, seed=1), "speed": False}
    thrifty.compress(model, recipe, inputs("llama", 4, 16), out=tmp_path / "out", **words)
    assert front_of((tmp_path / "out" / "README.md").read_text())["base_model_relation"] == relation
