"""FARMS for rates: exponents on windows, so that noise of any shape is given the same rate, where whole matrices are led astray."""

from __future__ import annotations

import pytest

from tests.tune.test_temp_balance import heavy
from tests.weights.problems import draw
from thrifty.base.errors import InputError
from thrifty.core.spectra import farms, farms_kernel, windows_cost
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.tune.farms_rates import FarmsRates
from thrifty.tune.temp_balance import TempBalance


def test_alphas_are_those_of_windows_or_of_the_blocks_of_a_kernel():
    matrix, kernel = draw(0, 24, 60), draw(1, 12, 5, 3, 3)
    rates = FarmsRates(side=10, positions=3)
    assert rates.alpha(matrix) == farms(matrix, 10, 1.0, 3, "median")
    assert rates.alpha(kernel) == farms_kernel(kernel)
    assert FarmsRates(ratio=2.0, rule="peak").alpha(kernel) == farms_kernel(kernel, 2.0, "peak")
    assert rates.cost(24, 60) == windows_cost(24, 60, 10, 1.0, 3)


def test_the_published_settings_are_the_defaults():
    rates = FarmsRates()
    assert (rates.side, rates.ratio, rates.positions, rates.rule, rates.least, rates.most) == (100, 1.0, 9, "median", 0.1, 1.9)


def test_noise_of_any_shape_moves_alike_beside_what_was_learnt():
    """Two matrices of noise, of which only the shape differs, beside one with a heavy tail: windows give both the same rate."""
    matrices = {"noise": draw(2, 64, 64), "long noise": draw(3, 64, 512), "learnt": heavy(64)}
    apart = {}
    for rates in (FarmsRates(side=64, positions=8, least=0.5, most=1.5), TempBalance(least=0.5, most=1.5)):
        found = rates.factors({name: rates.alpha(matrix) for name, matrix in matrices.items()})
        assert found["learnt"] == 0.5
        apart[rates.name] = abs(found["long noise"] - found["noise"])
    assert apart["farms_rates"] < 0.2 * apart["temp_balance"]
    assert apart["temp_balance"] > 0.4


def test_a_recipe_names_rates_inside_a_step_that_trains():
    whole = complete(parse_recipe("distill: {rates: {farms_rates: {every: 7}}}"))
    assert whole.steps[0].settings["rates"] == {"farms_rates": FarmsRates(every=7).settings()}
    assert complete(parse_recipe("distill: {}")).steps[0].settings["rates"] is None
    with pytest.raises(InputError, match=r"part of a step \(tune.rates\), not a step; write distill: {rates: farms_rates}"):
        parse_recipe("farms_rates: {}")
    with pytest.raises(InputError, match=r"'gptq' is one of weights.preset; here goes one of tune.rates: farms_rates, temp_balance"):
        parse_recipe("distill: {rates: gptq}")
