"""The recipe that suits a number of bits, fitted to the widths of a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recipe.shapes import anatomy
from thrifty.base.errors import InputError
from thrifty.recipe.parse import parse_recipe
from thrifty.recipe.recommend import fitting_group, recommend
from thrifty.recipe.resolve import resolve


def test_without_any_wish_it_is_awq_and_gptq_at_4_bit() -> None:
    recipe, sentence = recommend(anatomy(64, 128))
    assert recipe == parse_recipe("w4")
    assert sentence == "awq + gptq, 4 bit, group 32"


def test_widths_that_32_does_not_divide_get_a_smaller_group() -> None:
    model = anatomy(64, 72)
    recipe, sentence = recommend(model)
    steps = resolve(recipe, model)
    groups = {path.rsplit(".", 1)[-1]: method.settings()["group_size"] for path, method in steps[-1].methods.items()}
    assert groups["down_proj"] == 8
    assert groups["q_proj"] == 32
    assert "group 8 for 2 linears of width 72" in sentence


def test_widths_that_nothing_divides_get_one_scale_a_row() -> None:
    model = anatomy(50, 64)
    recipe, sentence = recommend(model)
    groups = {method.settings()["group_size"] for path, method in resolve(recipe, model)[-1].methods.items() if "down" not in path}
    assert groups == {0}
    assert "one scale a row" in sentence


def test_transforms_are_left_out_where_nothing_can_be_rewritten() -> None:
    recipe, sentence = recommend(anatomy(commutes=False))
    assert [step.method for step in recipe.steps] == ["gptq"]
    assert sentence.startswith("gptq, ")


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_number_of_bits_has_a_recipe(bits: int) -> None:
    model = anatomy(64, 72)
    recipe, sentence = recommend(model, bits)
    assert f"{bits} bit" in sentence
    assert {method.settings()["bits"] for method in resolve(recipe, model)[-1].methods.values()} == {bits}
    assert parse_recipe(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("bits", [0, 1, 9, 16, -4, True, 4.0])
def test_other_bits_are_refused(bits: object) -> None:
    with pytest.raises(InputError, match="from 2 to 8"):
        recommend(anatomy(), bits)  # type: ignore[arg-type]


@given(st.integers(1, 5000), st.sampled_from([128, 64, 32, 16]))
def test_the_group_divides_and_is_the_largest(width: int, wanted: int) -> None:
    group = fitting_group(width, wanted)
    candidates = [size for size in (128, 64, 32, 16, 8) if size <= wanted and width % size == 0]
    assert group == (candidates[0] if candidates else 0)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_recommendation_always_resolves(hidden: int, inner: int) -> None:
    model = anatomy(4 * hidden, 4 * inner)
    recipe, _ = recommend(model)
    resolve(recipe, model)
