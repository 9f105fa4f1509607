"""Short rows: costs and values against least squares by hand, row by row."""

from __future__ import annotations

import itertools

import pytest
import torch

from thrifty.core import least_loss
from thrifty.core.least_loss import costs, damped, refitted


def drawn(rows: int = 5, n: int = 4, grams: int = 5):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(grams, 30, n, generator=generator, dtype=torch.float64) @ torch.randn(
        n, n, generator=generator, dtype=torch.float64
    )
    return torch.randn(rows, n, generator=generator, dtype=torch.float64), inputs, inputs.mT @ inputs / 30


def by_hand(row, inputs, kept):
    """(the values of least squares on some columns, what they lose)."""
    values = torch.zeros_like(row)
    values[kept] = torch.linalg.lstsq(inputs[:, kept], inputs @ row).solution
    return values, float((inputs @ (row - values)).square().sum() / len(inputs))


@pytest.mark.parametrize("grams", [5, 1])
def test_a_cost_is_what_is_lost_when_that_entry_alone_goes(grams):
    weight, inputs, gram = drawn(grams=grams)
    found = costs(weight, gram)
    for row, entry in itertools.product(range(5), range(4)):
        others = [place for place in range(4) if place != entry]
        assert float(found[row, entry]) == pytest.approx(by_hand(weight[row], inputs[row % grams], others)[1])


@pytest.mark.parametrize("grams", [5, 1])
def test_what_stays_is_the_solution_of_least_squares(grams, monkeypatch):
    monkeypatch.setattr(least_loss, "ENTRIES", 2 * 16)  # two rows at a time
    weight, inputs, gram = drawn(grams=grams)
    keep = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    found = refitted(weight, gram, keep)
    for row in range(5):
        torch.testing.assert_close(found[row], by_hand(weight[row], inputs[row % grams], keep[row].nonzero()[:, 0])[0])
    assert torch.equal(found[2], weight[2]) and not found[~keep].any()


def test_damping_is_a_share_of_the_mean_diagonal_and_what_was_never_read_is_no_system_without_solution():
    gram = torch.stack([torch.diag(torch.tensor([1.0, 3.0])), torch.zeros(2, 2)])
    expected = torch.stack([torch.diag(torch.tensor([1.2, 3.2], dtype=torch.float64)), torch.eye(2, dtype=torch.float64)])
    torch.testing.assert_close(damped(gram, 0.1), expected)
