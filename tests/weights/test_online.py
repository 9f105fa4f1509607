"""Inputs that are turned while the model runs: the matrix undoes it, and neurons that stand out cost less once they are rounded.

Ashkboos et al. (2024), arXiv 2404.00456.
"""

from __future__ import annotations

import pytest
import torch

from tests.weights.problems import draw
from thrifty.base.anatomy import Space
from thrifty.core.activations import Rounding
from thrifty.core.hadamard import hadamard_matrix
from thrifty.core.statistics import Statistics
from thrifty.weights.transform.online import Online


def neurons(width: int) -> Space:
    return Space("down.in", width, "neuron", 1, ("up",), ("down",), "scale")


@pytest.mark.parametrize(("width", "order"), [(64, 64), (96, 96), (100, 20), (11008, 256)])
def test_inputs_and_matrix_are_multiplied_by_the_same_blocks(width: int, order: int) -> None:
    weight, inputs = draw(0, 5, width, dtype=torch.float32), draw(1, 40, width, dtype=torch.float32)
    found = Online().rewrite(neurons(width), [weight], Statistics.empty(4), None)
    assert found.while_running and found.turn.order == order and torch.equal(found.turn.signs, torch.ones(width))
    matrix = hadamard_matrix(order) / order**0.5
    expected = (inputs.reshape(40, -1, order) @ matrix).reshape(40, width)
    torch.testing.assert_close(found.of(inputs), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.of(inputs) @ found.consumer(weight).T, inputs @ weight.T, rtol=0, atol=1e-5 * width**0.5)


def test_only_neurons_are_turned() -> None:
    assert Online().suits(neurons(64))
    assert not Online().suits(neurons(63))  # no matrix divides an odd width
    assert not Online().suits(Space("in", 64, "channel", 1, ("norm",), ("q", "k"), "scale"))
    assert not Online().suits(Space("in", 64, "kv_group", 16, ("v",), ("o",), "any"))


@pytest.mark.parametrize("bits", [4, 6])
def test_neurons_that_stand_out_cost_less_once_they_are_spread(bits: int) -> None:
    """A gated product has heavy tails: a few of its entries decide the scale of a token."""
    inputs = draw(2, 300, 256, dtype=torch.float32) * draw(3, 300, 256, dtype=torch.float32) ** 3
    weight, rounding = draw(4, 32, 256, dtype=torch.float32), Rounding(bits, "token", True)
    found = Online().rewrite(neurons(256), [weight], Statistics.empty(4), None)
    plain = (rounding(inputs) @ weight.T - inputs @ weight.T).square().mean()
    turned = (rounding(found.of(inputs)) @ found.consumer(weight).T - inputs @ weight.T).square().mean()
    assert turned < 0.4 * plain
