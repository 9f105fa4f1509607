"""The table at the head of page, console and card, and the recipe in one line."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.samples import certificate, unmeasured, vision
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.parse import complete, parse_recipe, shipped
from thrifty.report.headline import Row, headline, markdown, recipe_line


def rows(**changes: Any) -> dict[str, Row]:
    return {row.what: row for row in headline(certificate(**changes))}


def test_every_figure_of_a_language_model_is_told() -> None:
    assert headline(certificate()) == [
        Row("weight files", "8.40 MB", "2.90 MB", "2.90x smaller"),
        Row("stored bits per compressed weight", "", "4.56"),
        Row("perplexity", "12.31 [11.8, 12.9]", "12.69 [12.1, 13.3]", "+3.10 % [+2.70 %, +3.50 %]"),
        Row("KL divergence from the original, nats", "", "0.031 [0.029, 0.033]"),
        Row("same most likely prediction", "", "91.2 %", "311 right to wrong, 198 wrong to right"),
        Row("decode, tokens/s", "101", "204", "2.02x"),
    ]


def test_a_model_without_next_tokens_shows_the_error_of_its_output() -> None:
    assert headline(vision()) == [
        Row("weight files", "8.40 MB", "2.90 MB", "2.90x smaller"),
        Row("stored bits per compressed weight", "", "4.56"),
        Row("KL divergence from the original, nats", "", "0.002 [0.001, 0.003]"),
        Row("same most likely prediction", "", "98.0 %"),
        Row("relative error of the output", "0", "0.0125", "0.0125 [0.01, 0.015]"),
        Row("accuracy", "0.91", "0.9", "-0.01 [-0.03, 0.01]"),
    ]


def test_what_was_not_measured_is_left_out() -> None:
    assert headline(unmeasured()) == [
        Row("weight files", "8.40 MB", "2.90 MB", "2.90x smaller"),
        Row("stored bits per compressed weight", "", "4.56"),
    ]
    assert headline(unmeasured(bytes=None, bits_per_weight=None)) == []


def test_a_metric_without_a_row_of_its_own_has_the_row_of_its_name() -> None:
    found = rows(quality=[{"metric": "word_accuracy", "before": 0.5, "after": 0.25, "difference": -0.25}])
    assert found["word accuracy"] == Row("word accuracy", "0.5", "0.25", "-0.25")


def test_a_result_that_is_no_smaller_says_so() -> None:
    assert rows(bytes={"before": 1000, "after": 1000})["weight files"].change == "the same size"
    assert rows(bytes={"before": 1000, "after": 1250})["weight files"].change == "1.25x larger"


def test_half_an_interval_or_none_is_not_made_up() -> None:
    assert rows(perplexity_ratio=None)["perplexity"].change == ""
    assert rows(perplexity_ratio={"value": 0.99})["perplexity"].change == "-1.00 %"
    assert rows(perplexity_ratio={"value": None})["perplexity"].change == ""
    assert rows(flips=None)["same most likely prediction"].change == ""
    assert rows(speed={"decode_tokens_per_second": {"before": None, "after": 3.0}})["decode, tokens/s"].change == ""
    assert "decode, tokens/s" not in rows(speed=None)


def test_markdown_has_a_line_a_row_and_no_stray_bars() -> None:
    odd = certificate(quality=[{"metric": "a|b", "before": 1.0, "after": 2.0, "difference": 1.0}])
    lines = markdown(odd).splitlines()
    assert len(lines) == 2 + len(headline(odd))
    assert all(line.replace("\\|", "").count("|") == 5 for line in lines)
    assert "a\\|b" in lines[-2]


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ("steps: [gptq: {bits: 4, group_size: 32}]", "gptq (bits 4, group size 32)"),
        ("steps: [awq: {}, gptq: {bits: 3, group_size: 0, symmetric: false}]", "awq + gptq (bits 3, group size 0, symmetric no)"),
        ("steps: [awq: {grid: 20}, gptq: {bits: 4, act_order: true, damping: 0.01}]", "awq + gptq (bits 4)"),
        ("steps: [gptq: {bits: 4, damping: 0.05}]", "gptq (bits 4, damping 0.05)"),
        ("steps: [{sparsegpt: {sparsity: 0.5, pattern: null}, skip: [lm_head]}]", "sparsegpt (sparsity 0.5), skip lm_head"),
        (
            "steps: [{rtn: {bits: 4}, override: {'*.down_proj': {bits: 8}}}]",
            "rtn (bits 4), override *.down_proj (bits 8)",
        ),
        (
            "steps: [solve: {by: {awp: {steps: 9}}, into: {n_m: {n: 2, m: 4}}, share: {uniform: {}}}]",
            "solve (by awp (steps 9), into n_m (n 2, m 4), share uniform)",
        ),
        ("steps: [unheard_of: {a: 1, b: [2, 3]}]", "unheard_of (a 1, b 2, 3)"),
        ("steps: [unheard_of]", "unheard_of"),
        ("no steps here", "no steps here"),
        ("{broken", "{broken"),
        ("", "–"),  # noqa: RUF001
    ],
)
def test_a_recipe_in_one_line(recipe: str, line: str) -> None:
    assert recipe_line(recipe) == line


def test_a_long_recipe_is_cut() -> None:
    line = recipe_line("steps: [" + ", ".join(["gptq: {bits: 4, group_size: 32}"] * 9) + "]")
    assert len(line) == 100 and line.endswith("...")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_fits_one_line_that_names_its_methods(name: str) -> None:
    recipe = complete(parse_recipe(name))
    line = recipe_line(recipe.to_yaml())
    assert not line.endswith("...")
    for step in recipe.steps:
        assert step.method in load_methods() and step.method in line
