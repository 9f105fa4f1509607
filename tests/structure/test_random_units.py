"""By lot, and the same lot again."""

from __future__ import annotations

import dataclasses

import torch

from tests.structure.views import view_of
from thrifty.structure.random_units import RandomUnits


def test_the_seed_decides_and_every_unit_has_its_chance(source_of):
    view, seen, _ = view_of(source_of("llama"), "llama", "neurons", "heads")
    first, again = (RandomUnits().score(view, seen) for _ in range(2))
    other = RandomUnits().score(view, dataclasses.replace(seen, seed=1))
    assert {space.name for space in first} == {"mlp.hidden", "attention.output"}
    for space, scores in first.items():
        assert torch.equal(scores, again[space])
        assert not torch.equal(scores, other[space])
        assert len(scores.unique()) == len(scores)
