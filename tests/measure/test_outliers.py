"""Layers out of line are named; ordinary spread is not."""

from __future__ import annotations

import math
import random

import pytest

from thrifty.measure.certificate import Layer
from thrifty.measure.outliers import outliers


def _layer(name: str, error: float | None, role: str = "q", bits: float = 4) -> Layer:
    return Layer(name=name, method="gptq", bits=bits, sparsity=0.0, error=1.0, relative_error=error, role=role)


def _layers(count: int = 24, spread: float = 0.3, seed: int = 0, role: str = "q", typical: float = 0.01) -> list[Layer]:
    draw = random.Random(seed)
    return [_layer(f"{role}.{index}", typical * math.exp(draw.gauss(0, spread)), role) for index in range(count)]


def test_one_bad_layer_is_named_with_the_factor():
    found = outliers([*_layers(), _layer("bad", 0.2)])
    assert [outlier.name for outlier in found] == ["bad"]
    assert "times the median" in found[0].reason and "q layers" in found[0].reason


@pytest.mark.parametrize("seed", range(8))
def test_ordinary_spread_is_not_named(seed: int):
    assert outliers(_layers(seed=seed, spread=0.25)) == []


def test_equal_layers_that_differ_in_the_last_digit_are_not_named():
    assert outliers([_layer(str(index), 0.01) for index in range(20)] + [_layer("x", 0.0101)]) == []
    assert [o.name for o in outliers([_layer(str(index), 0.01) for index in range(20)] + [_layer("x", 0.03)])] == ["x"]


def test_roles_are_judged_apart():
    mixed = [*_layers(role="q", typical=0.001, spread=0.1), *_layers(role="down", typical=0.05, spread=0.1, seed=1)]
    assert outliers(mixed) == []
    found = outliers([*mixed, _layer("bad", 0.05, "q")])
    assert [outlier.name for outlier in found] == ["bad"]


def test_settings_are_judged_apart():
    layers = [*_layers(spread=0.1), *(_layer(f"two.{index}", 0.3 + index / 100, bits=2) for index in range(4))]
    assert outliers(layers) == []


def test_few_layers_of_a_role_are_judged_among_all():
    layers = [_layer(f"{role}.{block}", 0.01 + block / 1000, role) for role in ("q", "k", "v", "o") for block in range(2)]
    found = outliers([*layers, _layer("down.0", 0.4, "down")])
    assert [outlier.name for outlier in found] == ["down.0"]
    assert "same settings" in found[0].reason


def test_too_few_layers_name_nobody():
    assert outliers([_layer("a", 0.001), _layer("b", 0.5)]) == []


def test_broken_layers_and_layers_worse_than_zeros_are_always_named():
    found = outliers([_layer("a", 1.0), _layer("b", math.nan), _layer("c", None), _layer("d", 0.01), _layer("e", 0.0)])
    assert {outlier.name for outlier in found} == {"a", "b", "c"}
    assert found[-1].name == "a"


def test_the_worst_comes_first_and_order_of_layers_does_not_matter():
    layers = [*_layers(), _layer("bad", 0.1), _layer("worse", 0.3)]
    assert [outlier.name for outlier in outliers(layers)] == ["worse", "bad"]
    assert outliers(layers[::-1]) == outliers(layers)
