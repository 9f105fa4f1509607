"""One option for each part within a budget: exact where costs are small, near the bound elsewhere, and never worse for a larger budget."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.errors import InputError
from thrifty.core import budget as module
from thrifty.core.budget import _along_hulls, choose, exactly


@st.composite
def tables(draw, parts=5, options=4, whole=True):
    """(losses, costs) with absent options, ties and flat stretches among them."""
    shape = (draw(st.integers(1, parts)), draw(st.integers(1, options)))
    numbers = st.integers(0, 12) if whole else st.floats(0, 12, allow_subnormal=False)
    costs = torch.tensor([[float(draw(numbers)) for _ in range(shape[1])] for _ in range(shape[0])], dtype=torch.float64)
    losses = torch.tensor([[float(draw(st.integers(0, 20))) for _ in range(shape[1])] for _ in range(shape[0])], dtype=torch.float64)
    for part in range(shape[0]):
        if shape[1] > 1 and draw(st.booleans()):
            losses[part, draw(st.integers(0, shape[1] - 1))] = math.inf
    return losses, costs


def limits(losses, costs):
    have = losses.isfinite()
    return float(torch.where(have, costs, math.inf).amin(1).sum()), float(torch.where(have, costs, 0.0).amax(1).sum())


def every(losses, costs, budget):
    """The least loss of all choices, tried one by one."""
    rows, best = range(len(losses)), math.inf
    for options in itertools.product(range(losses.shape[1]), repeat=len(losses)):
        if sum(float(costs[row, option]) for row, option in zip(rows, options, strict=True)) <= budget:
            best = min(best, sum(float(losses[row, option]) for row, option in zip(rows, options, strict=True)))
    return best


@given(tables(), st.floats(0, 1))
def test_whole_costs_are_solved_exactly(table, share):
    losses, costs = table
    least, most = limits(losses, costs)
    budget = least + share * (most - least)
    best = every(losses, costs, budget)
    for found in (choose(losses, costs, budget), exactly(losses, costs.long(), math.floor(budget))):
        assert found.loss == best and found.gap == 0
        assert found.cost <= budget


@given(tables(), st.floats(0, 1))
def test_along_the_hulls_the_best_is_within_the_gap(table, share):
    losses, costs = table
    least, most = limits(losses, costs)
    budget = least + share * (most - least)
    found = _along_hulls(losses, torch.where(losses.isfinite(), costs, math.inf), budget)
    best = every(losses, costs, budget)
    assert found.cost <= budget + 1e-9
    assert best - 1e-9 <= found.loss <= best + found.gap + 1e-9
    assert found.bound <= best + 1e-9


@given(tables(parts=12, whole=False), st.floats(0, 1), st.floats(0, 1))
def test_more_budget_never_loses_more_and_no_uniform_choice_is_better(table, one, other):
    losses, costs = table
    least, most = limits(losses, costs)
    small, large = (least + share * (most - least) for share in sorted((one, other)))
    before, after = choose(losses, costs, small), choose(losses, costs, large)
    assert after.loss <= before.loss + 1e-9
    assert before.cost <= small * (1 + 1e-9)
    for option in range(losses.shape[1]):
        if float(costs[:, option].sum()) <= small:
            assert before.loss <= float(losses[:, option].sum()) + 1e-9
    rows = torch.arange(len(losses))
    assert float(losses[rows, before.options].sum()) == pytest.approx(before.loss)
    assert float(costs[rows, before.options].sum()) == pytest.approx(before.cost)


def test_parts_whose_losses_fall_alike_are_treated_by_their_size():
    """Losses C 4^-b: at a mean of 3 bits the sixteen times more sensitive half gets one bit more, the other one less."""
    bits = torch.tensor([2.0, 3.0, 4.0])
    losses = torch.tensor([[16.0], [16.0], [1.0], [1.0]]) * 4.0**-bits
    found = choose(losses, bits.expand(4, 3), 12)
    assert found.options.tolist() == [2, 2, 0, 0] and found.gap == 0


def test_a_large_model_takes_seconds_and_ends_near_the_bound():
    """5,000 parts (a mixture of experts) with costs that are no whole numbers."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.tensor([2.0, 3.0, 4.0, 8.0], dtype=torch.float64)
    sizes = torch.rand(5_000, 1, generator=generator, dtype=torch.float64) + 0.5
    losses = (2 * torch.randn(5_000, 1, generator=generator, dtype=torch.float64)).exp() * sizes * 4.0**-bits
    began = time.process_time()
    found = choose(losses, sizes * bits, 3.5 * float(sizes.sum()))
    assert time.process_time() - began < 10
    assert found.gap < 1e-4 * found.loss
    assert found.loss < 0.5 * float(losses[:, 1].sum())


def test_sizes_of_a_small_model_are_solved_exactly():
    """Bits of matrices have a large common unit, so that the table is small."""
    sizes = torch.tensor([65_536.0, 16_384.0, 176_128.0]).repeat(8)[:, None]
    bits = torch.tensor([2.5, 3.5, 4.5, 8.5])
    losses = torch.rand(24, 1, generator=torch.Generator().manual_seed(1)) * 4.0**-bits
    found = choose(losses, sizes * bits, 3.5 * float(sizes.sum()))
    assert found.gap == 0
    hulls = _along_hulls(losses.double(), (sizes * bits).double(), 3.5 * float(sizes.sum()))
    assert found.loss <= hulls.loss and hulls.bound <= found.loss


def test_the_method_does_not_depend_on_the_budget(monkeypatch):
    """Else a larger budget might fall back to hulls and lose more."""
    monkeypatch.setattr(module, "CELLS", 300)
    losses = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)).double()
    costs = torch.arange(4).expand(6, 4).double() * 3
    for budget in range(0, 60):
        assert choose(losses, costs, budget).loss >= choose(losses, costs, budget + 1).loss


@pytest.mark.parametrize(
    ("losses", "costs", "budget", "said"),
    [
        ([[1.0, 2.0]], [[1.0]], 1, "one shape"),
        ([[math.nan]], [[1.0]], 1, "no number"),
        ([[math.inf, math.inf]], [[1.0, 2.0]], 1, "no option"),
        ([[1.0]], [[-1.0]], 1, "negative"),
        ([[1.0]], [[math.inf]], 1, "negative or no finite"),
        ([[1.0, 0.0], [1.0, 0.0]], [[2.0, 3.0], [2.0, 3.0]], 3, "too small: the cheapest options cost 4"),
        ([[1.0]], [[1.0]], math.nan, "too small"),
    ],
)
def test_what_cannot_be_is_refused(losses, costs, budget, said):
    with pytest.raises(InputError, match=said):
        choose(torch.tensor(losses), torch.tensor(costs), budget)
