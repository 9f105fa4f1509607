"""Patterns over linears, settings over settings, and shapes checked before anything runs."""

from __future__ import annotations

import pytest

from tests.recipe.shapes import anatomy
from thrifty.base.errors import InputError
from thrifty.recipe.parse import parse_recipe, shipped
from thrifty.recipe.resolve import resolve
from thrifty.recipe.settings import merge

MODEL = anatomy(128, 256)


def settings_of(text: str, path: str) -> dict[str, object]:
    return resolve(parse_recipe(text), MODEL)[0].methods[path].settings()


def test_a_step_without_patterns_takes_every_linear() -> None:
    (step,) = resolve(parse_recipe("gptq: {bits: 4, group_size: 32}"), MODEL)
    assert list(step.methods) == [linear.path for linear in MODEL.linears]
    assert len({id(method) for method in step.methods.values()}) == 1


def test_only_and_skip() -> None:
    (step,) = resolve(parse_recipe("{gptq: {}, only: ['*.mlp.*'], skip: ['*.1.*', '*.up_proj']}"), MODEL)
    assert list(step.methods) == ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"]


@pytest.mark.parametrize("pattern", ["lm_head", "model.embed_tokens", "*.router"])
def test_skipping_what_is_never_compressed_is_no_mistake(pattern: str) -> None:
    assert len(resolve(parse_recipe({"gptq": {}, "skip": pattern}), MODEL)[0].methods) == len(MODEL.linears)


def test_later_overrides_win() -> None:
    text = "{gptq: {bits: 4, group_size: 32}, override: {'*.down_proj': {bits: 8, symmetric: false}, '*.0.mlp.*': {bits: 3}}}"
    chosen = settings_of(text, "model.layers.0.mlp.down_proj")
    assert (chosen["bits"], chosen["symmetric"], chosen["group_size"]) == (3, False, 32)
    assert settings_of(text, "model.layers.1.mlp.down_proj")["bits"] == 8
    assert settings_of(text, "model.layers.1.self_attn.q_proj")["bits"] == 4


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"gptq": {}, "skip": "*.down"}, ["skip", "'*.down'", "down_proj"]),
        ({"gptq": {}, "only": "*.qproj"}, ["only", "'*.qproj'", "q_proj"]),
        ({"gptq": {}, "only": "q_proj"}, ["'*.q_proj'"]),
        ({"gptq": {}, "only": "model.layers.0.mlp"}, ["'model.layers.0.mlp.*'"]),
        ({"gptq": {}, "only": "lm_head"}, ["only", "'lm_head'"]),
        ({"gptq": {}, "override": {"*.dwn_proj": {"bits": 8}}}, ["override", "'*.dwn_proj'", "down_proj"]),
        ({"gptq": {}, "skip": "*.down_proj", "override": {"*.down_proj": {"bits": 8}}}, ["override", "'*.down_proj'"]),
        ({"gptq": {}, "skip": "*"}, ["selects no linear"]),
        ({"gptq": {"bits": 4, "group_size": 48}}, ["48", "model.layers.0."]),
        ({"steps": [{"gptq": {}}, {"gptq": {}, "skip": "*.nothing"}]}, ["step 2"]),
        ({"awq": {}}, ["gptq"]),
    ],
)
def test_refuses(recipe: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(parse_recipe(recipe), MODEL)
    for word in words:
        assert word in str(caught.value), caught.value


def test_a_model_without_linears_is_refused() -> None:
    with pytest.raises(InputError, match="no linear"):
        resolve(parse_recipe("gptq"), anatomy(blocks=0))


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_suit_a_model_of_ordinary_widths(name: str) -> None:
    steps = resolve(parse_recipe(name), anatomy(256, 768))
    assert all(step.methods for step in steps)


def test_the_algebra_can_be_written_out() -> None:
    text = "solve: {by: obs, into: {int: {bits: 4, group_size: 32}}}"
    (step,) = resolve(parse_recipe(text), MODEL)
    method = next(iter(step.methods.values()))
    treatment = method.expand()
    assert treatment.solver.name == "obs"
    assert (treatment.target.bits, treatment.target.group_size) == (4, 32)
    again = parse_recipe({"solve": method.settings()})
    assert next(iter(resolve(again, MODEL)[0].methods.values())) == method


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("solve: {by: osb, into: int}", ["'osb'", "'obs'"]),
        ("solve: {by: obs, into: {itn: {}}}", ["'itn'", "'int'"]),
        ("solve: {by: int, into: int}", ["'int'"]),
        ("solve: {by: obs, into: {int: {bits: 9}}}", ["bits", "9"]),
        ("solve: {by: obs, into: {int: {}, top_k: {}}}", ["one method"]),
        ("solve: {by: obs, into: {int: 4}}", ["mapping", "4"]),
        ("solve: {by: obs, into: 4}", ["one method", "4"]),
    ],
)
def test_refuses_in_the_algebra(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text)
    for word in words:
        assert word in str(caught.value), caught.value


def test_merge_lays_changes_over_settings() -> None:
    assert merge({"a": 1, "b": {"int": {"bits": 4, "group_size": 32}}}, {"b": {"int": {"bits": 8}}, "c": 2}) == {
        "a": 1,
        "b": {"int": {"bits": 8, "group_size": 32}},
        "c": 2,
    }
    assert merge({"b": {"int": {"bits": 4}}}, {"b": {"top_k": {}}}) == {"b": {"top_k": {}}}
