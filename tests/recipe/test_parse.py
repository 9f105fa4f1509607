"""Recipes from text: what is accepted, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thrifty.base.errors import InputError
from thrifty.base.method import methods
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.language import Recipe, Step
from thrifty.recipe.parse import complete, parse_recipe, shipped, summary
from thrifty.recipe.reader import read, write

FULL = """
calibration: {text: wikitext2, samples: 128, tokens: 512}
steps:
  - awq: {}
  - gptq: {bits: 4, group_size: 32, symmetric: true}
    skip: [lm_head]
    override: {"*.down_proj": {bits: 8}}
"""

# (text, words that the message must hold): every refusal says where and what.
BAD = {
    "unknown method": ("gpqt: {bits: 4}", ["'gpqt'", "'gptq'", "thrifty methods"]),
    "unknown method in a step": ("steps:\n  - awq: {}\n  - gptg: {bits: 4}", ["line 3", "step 2", "'gptg'", "'gptq'"]),
    "a cache as a step": (
        "steps:\n  - gptq: {}\n  - kivi: {}",
        ["line 3", "step 2", "DIR --cache kivi", "kv_cache(model, 'kivi')"],
    ),
    "a healer as a step": ("learned_rounding: {}", ["step 1", "solve: {by: descent, into: {int: {bits: 2}}, heal: learned_rounding}"]),
    "unknown setting": ("gptq: {bit: 4}", ["gptq", "'bit'", "'bits'"]),
    "bits 0": ("gptq: {bits: 0}", ["bits", "0"]),
    "bits 9": ("gptq: {bits: 9}", ["bits", "8", "9"]),
    "bits 9 in an override": ("steps:\n- gptq: {}\n  override:\n    '*.q_proj': {bits: 9}", ["line 4", "step 1", "'*.q_proj'", "bits"]),
    "negative bits": ("gptq: {bits: -4}", ["bits", "-4"]),
    "bits as text": ("gptq: {bits: four}", ["bits", "'four'"]),
    "bits as truth": ("gptq: {bits: true}", ["bits", "True"]),
    "bits as fraction": ("gptq: {bits: 3.5}", ["bits", "3.5"]),
    "negative group": ("gptq: {group_size: -32}", ["group_size", "-32"]),
    "truth as text": ("gptq: {symmetric: maybe}", ["symmetric", "'maybe'"]),
    "wrong type with its line": ("steps:\n- gptq:\n    group_size: 32\n    bits: [4]", ["line 4", "bits"]),
    "two methods in a step": ("steps:\n- awq: {}\n  gptq: {bits: 4}", ["step 1", "2 methods", "awq", "gptq"]),
    "two methods inline": ("{awq: {}, gptq: {bits: 4}}", ["2 methods"]),
    "unknown reserved key": ("steps:\n- gptq: {}\n  skpi: [a]", ["line 3", "'skpi'", "'skip'"]),
    "no method in a step": ("steps:\n- skip: [a]", ["step 1", "no method"]),
    "solver as a step": ("obs: {}", ["obs", "solve: {by: obs"]),
    "target as a step": ("steps: [{int: {bits: 4}}]", ["int", "solve: {by: obs"]),
    "step as text": ("steps:\n- gptq", ["step 1", "'gptq: {}'"]),
    "step as number": ("steps:\n- 4", ["step 1", "4"]),
    "step as null": ("steps:\n- null", ["step 1"]),
    "settings as number": ("gptq: 4", ["gptq", "mapping", "4"]),
    "settings as list": ("gptq: [4]", ["gptq", "mapping"]),
    "steps empty": ("steps: []", ["at least one"]),
    "steps null": ("steps:", ["at least one"]),
    "steps a mapping": ("steps: {gptq: {bits: 4}}", ["list"]),
    "no steps": ("calibration: {samples: 4}", ["needs steps"]),
    "misspelled steps": ("stesp:\n- gptq: {}", ["'stesp'", "'steps'"]),
    "unknown top key": ("calibraton: {samples: 4}\nsteps: [{gptq: {}}]", ["line 1", "'calibraton'", "'calibration'"]),
    "a list": ("- gptq: {bits: 4}\n- awq: {}", ["not a list", "steps:"]),
    "plain text": ("gptq:{bits:4}", ["space after the colon"]),
    "not YAML": ("steps: [gptq: {bits: 4}", ["line 1", "not YAML"]),
    "not YAML, later line": ("steps:\n  - gptq: {bits: 4}\n bad", ["line 3", "not YAML"]),
    "tab": ("steps:\n\t- gptq: {}", ["line 2", "not YAML"]),
    "control character": ("gptq: {bits: 4\x00}", ["not YAML"]),
    "deep nesting": ("a: " + "[" * 5000, ["nested too deeply"]),
    "duplicate setting": ("gptq: {bits: 4, bits: 8}", ["'bits'", "twice"]),
    "duplicate steps": ("steps: [{gptq: {}}]\nsteps: [{awq: {}}]", ["line 2", "'steps'", "twice"]),
    "key is a number": ("gptq: {4: 4}", ["'4'", "quotes"]),
    "key is a list": ("{[a]: 4}", ["key must be text"]),
    "NaN": ("gptq: {damping: .nan}", [".nan", "finite"]),
    "infinity": ("gptq: {damping: -.inf}", ["-.inf", "finite"]),
    "overflow": ("gptq: {damping: 1e999}", ["1e999", "finite"]),
    "endless integer": ("gptq: {bits: " + "9" * 5000 + "}", ["sensible size"]),
    "anchor": ("steps: [&a {gptq: {}}, *a]", ["anchors"]),
    "tag": ("gptq: {bits: !!python/name:os.system x}", ["tags"]),
    "only a number": ("steps:\n- gptq: {}\n  only: 3", ["line 3", "only", "pattern"]),
    "skip holds a number": ("steps:\n- gptq: {}\n  skip: [3]", ["skip", "pattern"]),
    "empty pattern": ("steps:\n- gptq: {}\n  skip: ['']", ["skip", "pattern"]),
    "override a list": ("steps:\n- gptq: {}\n  override: [a]", ["override", "mapping"]),
    "override not a mapping": ("steps:\n- gptq: {}\n  override: {a: 8}", ["override 'a'", "mapping"]),
    "override of an unknown setting": ("steps:\n- gptq: {}\n  override: {a: {bitz: 8}}", ["'bitz'", "'bits'"]),
    "samples 0": ("calibration: {samples: 0}\nsteps: [{gptq: {}}]", ["line 1", "calibration", "samples", "0"]),
    "samples negative": ("calibration: {samples: -1}\nsteps: [{gptq: {}}]", ["samples", "-1"]),
    "samples as text": ("calibration: {samples: many}\nsteps: [{gptq: {}}]", ["samples", "'many'"]),
    "samples as truth": ("calibration: {samples: true}\nsteps: [{gptq: {}}]", ["samples"]),
    "tokens 1": ("calibration: {tokens: 1}\nsteps: [{gptq: {}}]", ["tokens", "1"]),
    "unknown calibration setting": ("calibration: {sample: 8}\nsteps: [{gptq: {}}]", ["'sample'", "'samples'"]),
    "calibration a list": ("calibration: [1]\nsteps: [{gptq: {}}]", ["calibration", "mapping"]),
    "text a number": ("calibration: {text: 3}\nsteps: [{gptq: {}}]", ["text", "3"]),
    "evaluation setting": ("evaluation: {sample: 3}\nsteps: [{gptq: {}}]", ["'sample'", "'samples'"]),
    "empty text": ("   ", ["empty"]),
    "empty mapping": ("{}", ["empty"]),
    "null": ("null\n", ["empty"]),
    "unknown name": ("w44", ["'w44'", "'w4'", "thrifty recipes"]),
    "missing file": ("nowhere/recipe.yaml", ["nowhere/recipe.yaml", "no recipe file"]),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_refuses(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_reads_the_whole_language(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(FULL)
    recipe = parse_recipe(file)
    assert (recipe.calibration.text, recipe.calibration.samples, recipe.calibration.tokens) == (("wikitext2",), 128, 512)
    assert recipe.steps[0] == Step(method="awq")
    assert recipe.steps[1].settings == {"bits": 4, "group_size": 32, "symmetric": True}
    assert recipe.steps[1].skip == ("lm_head",)
    assert recipe.steps[1].override == (("*.down_proj", {"bits": 8}),)
    assert parse_recipe(str(file)) == recipe
    assert parse_recipe(recipe.plain()) == recipe
    assert recipe.words() == "awq + gptq"


def test_names_the_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# mine\nsteps:\n  - gptq: {}\n  - gptq:\n      bits: 4\n      group_size: none\n")
    with pytest.raises(InputError, match=r"mine\.yaml, line 6: step 2: gptq: group_size .*'none'"):
        parse_recipe(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00g", b"#" * 1_000_001], ids=["not UTF-8", "too large"])
def test_refuses_files_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        parse_recipe(file)


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        parse_recipe(tmp_path)


def test_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text('{\n\t"steps": [\n\t\t{"gptq": {"bits": 4, "damping": 1e-4}}\n\t]\n}')
    assert parse_recipe(file).steps[0].settings == {"bits": 4, "damping": 1e-4}


def test_short_forms_mean_the_long_one() -> None:
    long = parse_recipe("steps: [{gptq: {}}]")
    assert parse_recipe("gptq") == parse_recipe("gptq:") == parse_recipe("gptq: {}") == parse_recipe({"gptq": {}}) == long
    assert parse_recipe("{calibration: a.txt, steps: [{gptq: {}}]}").calibration.text == ("a.txt",)


def test_a_shipped_name_is_not_shadowed_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w4").mkdir()
    assert parse_recipe("w4") == parse_recipe(shipped()["w4"])


def test_yaml_does_not_guess() -> None:
    value, _ = read("{a: no, b: 12:30, c: 2020-01-01, d: 1e-4, e: 0x10, f: 010, g: '4', h: ~, i: 1_000}", "text")
    assert value == {"a": "no", "b": "12:30", "c": "2020-01-01", "d": 1e-4, "e": "0x10", "f": 10, "g": "4", "h": None, "i": "1_000"}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_parse_and_say_what_they_are(name: str) -> None:
    text = shipped()[name]
    assert len(summary(text)) > 20
    recipe = parse_recipe(name)
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_complete_writes_every_default() -> None:
    recipe = complete(parse_recipe("gptq: {bits: 3}"))
    settings = recipe.steps[0].settings
    assert settings["bits"] == 3
    assert settings == methods()["gptq"](bits=3).settings()
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_the_order_of_overrides_counts() -> None:
    one = parse_recipe("{steps: [{gptq: {}, override: {'a*': {bits: 3}, '*b': {bits: 8}}}]}")
    two = parse_recipe("{steps: [{gptq: {}, override: {'*b': {bits: 8}, 'a*': {bits: 3}}}]}")
    assert one != two
    assert one.key() != two.key()
    assert parse_recipe(one.to_yaml()).key() == one.key()


texts = st.text(max_size=12)
numbers = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
scalars = (
    st.none()
    | st.booleans()
    | numbers
    | texts
    | st.sampled_from(["1e-4", "no", "null", "~", "4", ".inf", "1_0", "2020-01-01", "", "a: b", "- x"])
)
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=12)


@given(plain)
def test_written_text_reads_back_equal(value: object) -> None:
    back, _ = read(write(value), "text")
    assert back == value
    assert repr(back) == repr(value)  # tells 1 from 1.0 and True


names = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="*._"), min_size=1, max_size=8)
settings = st.fixed_dictionaries(
    {}, optional={"bits": st.integers(2, 8), "group_size": st.sampled_from([0, 16, 32]), "symmetric": st.booleans()}
)
parts = st.fixed_dictionaries(
    {}, optional={"text": st.lists(names, min_size=1, max_size=3), "samples": st.integers(1, 999), "tokens": st.integers(2, 999)}
)


@st.composite
def steps(draw: st.DrawFn) -> dict[str, object]:
    step: dict[str, object] = {"gptq": draw(settings)}
    for key in ("only", "skip"):
        if chosen := draw(st.lists(names, max_size=2)):
            step[key] = chosen
    if changes := draw(st.dictionaries(names, settings, max_size=2)):
        step["override"] = changes
    return step


@given(st.lists(steps(), min_size=1, max_size=3), parts)
def test_a_recipe_survives_its_text(chosen: list[dict[str, object]], calibration: dict[str, object]) -> None:
    load_methods()
    recipe = parse_recipe({"calibration": calibration, "steps": chosen})
    text = recipe.to_yaml()
    again = parse_recipe(text if "\n" in text else text + "\n")
    assert isinstance(again, Recipe)
    assert again == recipe
    assert again.key() == recipe.key()
    assert again.to_yaml() == text


@given(texts.filter(str.strip))
@example("~\0")  # a home whose name no system takes
@example("~nobody/recipe.yaml")
def test_any_text_is_a_recipe_or_one_sentence(text: str) -> None:
    try:
        parse_recipe(text)
    except InputError as error:
        assert str(error)
