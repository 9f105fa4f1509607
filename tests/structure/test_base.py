"""Ratios, ranking, and what a method is handed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.anatomy import Space, Units
from thrifty.base.errors import InputError
from thrifty.structure.base import choose, share_out
from thrifty.structure.flap import Flap
from thrifty.structure.magnitude_units import MagnitudeUnits
from thrifty.structure.random_units import RandomUnits


def units(kind, count: int, least: int = 1) -> Units:
    return Units(Space("space", count), kind, count, (), "all", (), least)


@given(st.integers(1, 64), st.floats(0, 0.99), st.sampled_from([1, 4, 8]))
def test_about_the_ratio_goes(multiples, ratio, step):
    count = multiples * step
    kept = RandomUnits(ratio=ratio, multiple_of=step).kept(units("neurons", count))
    assert kept % step == 0
    assert step <= kept <= count
    assert abs(kept - (1 - ratio) * count) <= max(step / 2, step - (1 - ratio) * count) + 1e-9
    assert RandomUnits(ratio=0).kept(units("neurons", count + 3)) == count + 3


def test_heads_and_experts_are_counted_one_by_one_and_some_must_stay():
    assert RandomUnits(ratio=0.25).kept(units("heads", 8)) == 6
    assert RandomUnits(ratio=0.9, cut=("experts",)).kept(units("experts", 8, least=2)) == 2
    assert RandomUnits(ratio=0.9).kept(units("heads", 2)) == 1


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.data())
def test_the_best_stay_in_order(values, data):
    kept = data.draw(st.integers(1, len(values)))
    scores = torch.tensor(values)
    stay = choose(scores, kept)
    assert len(stay) == kept
    assert torch.equal(stay, stay.unique())
    gone = [value for place, value in enumerate(scores.tolist()) if place not in stay.tolist()]
    assert not gone or max(gone) <= float(scores[stay].min())


def test_what_is_no_number_goes_first():
    assert choose(torch.tensor([float("nan"), -3.0, 2.0]), 2).tolist() == [1, 2]


def test_a_kind_that_a_method_cannot_judge_is_refused():
    with pytest.raises(InputError, match=r"flap: cut takes neurons, heads, channels; got experts"):
        Flap(cut=("experts",))
    with pytest.raises(InputError, match="got nothing"):
        MagnitudeUnits(cut=())
    assert dataclasses.replace(Flap(), cut=("heads",)).cut == ("heads",)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 30), st.integers(0, 1000))
def test_a_budget_is_shared_out_over_blocks(blocks, step, count, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = [[torch.randn(count, generator=generator)] for _ in range(blocks)]
    kept = max(1, count // 2 // step) * step if count >= step else count
    counts = share_out(scores, kept, step, 1)
    assert all(1 <= number <= count for number in counts)
    assert all(number == count or number % step == 0 for number in counts)
    assert sum(counts) <= max(kept, min(step, count)) * blocks
    if count % step == 0:
        assert sum(counts) == kept * blocks


def test_shares_against_every_possible_one():
    scores = [torch.tensor([3.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.9, -0.9, -1.0])]
    standard = [(one - one.mean()) / one.std(correction=0) for one in scores]
    ranked = [one.sort(descending=True).values for one in standard]
    totals = {first: float(ranked[0][:first].sum() + ranked[1][: 4 - first].sum()) for first in range(1, 4)}
    counts = share_out([[one] for one in scores], 2, 1, 1)
    assert counts[0] == max(totals, key=totals.__getitem__)
    assert sum(counts) == 4


def test_scale_of_a_block_is_nothing_and_sets_of_one_block_keep_equally_many():
    one, other = torch.randn(12), torch.randn(12)
    assert share_out([[one], [other]], 6, 2, 1) == share_out([[one * 50 + 3], [other]], 6, 2, 1)
    assert len(share_out([[one, other], [other, one]], 6, 2, 4)) == 2
    assert min(share_out([[one], [other]], 4, 1, 4)) == 4
