"""Ratios, ranking, and what a method is handed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.anatomy import Space, Units
from thrifty.base.errors import InputError
from thrifty.structure.base import choose
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
