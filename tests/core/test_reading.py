"""What matrices do to their inputs, against the matrices themselves."""

from __future__ import annotations

import pytest
import torch

from thrifty.core.activations import Rounding
from thrifty.core.hadamard import hadamard_matrix
from thrifty.core.reading import AS_THEY_ARE, Reading


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "order"), [(64, 64), (96, 32), (40, 20)])
def test_inputs_are_turned_and_then_rounded(width: int, order: int) -> None:
    inputs, rounding = draw(0, 3, 5, width), Rounding(4, "token", True)
    turned = (inputs.reshape(3, 5, -1, order) @ hadamard_matrix(order) / order**0.5).reshape(3, 5, width)
    torch.testing.assert_close(Reading(order)(inputs), turned, rtol=0, atol=1e-5)
    torch.testing.assert_close(Reading(order).turned(inputs), turned, rtol=0, atol=1e-5)
    exact = Reading(order).turned(inputs)
    assert torch.equal(Reading(order, rounding)(inputs), rounding(exact)) and torch.equal(Reading(0, rounding)(inputs), rounding(inputs))
    assert torch.equal(AS_THEY_ARE(inputs), inputs)
    assert [bool(one) for one in (AS_THEY_ARE, Reading(order), Reading(0, rounding))] == [False, True, True]


@pytest.mark.parametrize(("width", "order"), [(64, 64), (96, 32), (48, 12)])
def test_a_folded_matrix_makes_of_plain_inputs_what_it_made_of_turned_ones(width: int, order: int) -> None:
    weight, inputs, reading = draw(1, 7, width), draw(2, 11, width), Reading(order)
    torch.testing.assert_close(inputs @ reading.folded(weight).T, reading(inputs) @ weight.T, rtol=0, atol=2e-5)
    assert AS_THEY_ARE.folded(weight) is weight
