"""BAQ over layers: the closed form, and that it beats equal bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.curves import curves, weights
from tests.weights.problems import draw
from thrifty.base.records import Curve
from thrifty.weights.allocate.baq_layers import BAQLayers, layer_bits
from thrifty.weights.allocate.uniform import Uniform


@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(1, 8), st.floats(0.5, 4))
def test_the_mean_over_all_weights_is_the_budget_and_each_weight_costs_the_same(seed, parts, mean, theta):
    losses, sizes = (2 * draw(seed, parts)).exp(), draw(seed + 1, parts).exp()
    bits = layer_bits(losses, sizes, mean, theta)
    assert float((bits * sizes).sum() / sizes.sum()) == pytest.approx(mean, abs=1e-6)
    each = losses / sizes * 2 ** (-theta * bits)
    torch.testing.assert_close(each, each[:1].expand(parts), rtol=1e-4, atol=0)


def test_equal_losses_get_equal_bits_and_sixteen_times_as_much_two_bits_more():
    sizes = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(layer_bits(sizes, sizes, 3.0, 2.0), torch.full((3,), 3.0, dtype=torch.float64))
    bits = layer_bits(torch.tensor([16.0, 1.0]), torch.ones(2), 3.0, 2.0)
    assert bits.tolist() == pytest.approx([4, 2], abs=1e-6)
    assert layer_bits(torch.zeros(4), torch.ones(4), 3.0, 2.0).tolist() == [3.0] * 4


def test_no_other_bits_at_the_same_mean_cost_less():
    """Two matrices of unequal size whose losses fall like 4^-b: every split on a fine lattice is tried."""
    losses, sizes = torch.tensor([3.0, 0.2], dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    bits = layer_bits(losses, sizes, 3.0, 2.0)
    first = torch.linspace(-2, 9, 4001, dtype=torch.float64)
    lattice = torch.stack([first, (3.0 * 4 - first) / 3])
    tried = (losses[:, None] * 4.0**-lattice).sum(0)
    assert float((losses * 4.0**-bits).sum()) == pytest.approx(float(tried.min()), rel=1e-4)


def test_where_options_lie_at_its_bits_it_takes_them():
    bits = (1.0, 2.0, 3.0, 4.0, 5.0)
    parts = [
        Curve(name, 64, tuple(sensitivity * 4.0**-bit for bit in bits), tuple(64 * bit for bit in bits))
        for name, sensitivity in (("a", 16.0), ("b", 1.0), ("c", 4.0))
    ]
    assert BAQLayers(2.0).share(parts, 3 * 192).options == {"a": 3, "b": 1, "c": 2}


@pytest.mark.parametrize("bits", [3, 4])
def test_it_loses_less_than_equal_bits(bits):
    for seed in range(20):
        parts = curves(seed, parts=24, bits=(1, 2, 3, 4, 5, 6, 7, 8))
        budget = bits * weights(parts)
        assert BAQLayers().share(parts, budget).loss < 0.8 * Uniform().share(parts, budget).loss
