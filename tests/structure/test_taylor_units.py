"""Scores against their definition, entry by entry."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.structure.views import view_of
from thrifty.structure.base import Slopes
from thrifty.structure.taylor_units import TaylorUnits, worth


@pytest.mark.parametrize("order", ["first", "second", "mixed"])
def test_a_unit_is_the_sum_of_its_entries(order, source_of):
    view, seen, _ = view_of(source_of("llama"), "llama", "neurons", "heads")
    drawn = torch.Generator().manual_seed(0)
    slopes = {}
    for linear in view.block.linears:
        mean, square = (torch.randn(linear.out_features, linear.in_features, generator=drawn) for _ in range(2))
        slopes[linear.path] = Slopes(mean, square.square())
    scores = {s.name: v for s, v in TaylorUnits(order=order).score(view, dataclasses.replace(seen, slopes=slopes)).items()}

    def entries(name: str) -> torch.Tensor:
        path = f"{view.block.path}.{name}_proj"
        one, weight = slopes[path], view.read(path)
        linear, curved = one.mean * weight, one.square * weight**2 / 2
        return {"first": linear, "second": curved, "mixed": linear - curved}[order].abs()

    neurons = entries("mlp.gate").sum(1) + entries("mlp.up").sum(1) + entries("mlp.down").sum(0)
    assert torch.allclose(scores["mlp.hidden"], neurons, rtol=1e-4)
    heads = [entries(f"self_attn.{name}") for name in "qkvo"]  # two groups: two heads of queries to one of keys and values
    groups = [rows.unflatten(0, (2, -1)).sum((1, 2)) for rows in heads[:3]] + [heads[3].unflatten(1, (2, -1)).sum((0, 2))]
    assert torch.allclose(scores["attention.output"], sum(groups), rtol=1e-4)


def test_experts_are_the_sums_of_theirs(source_of):
    view, seen, _ = view_of(source_of("mixtral"), "mixtral", "experts")
    slopes = {
        linear.path: Slopes(torch.full((linear.out_features, linear.in_features), float(linear.expert)), torch.zeros(1))
        for linear in view.block.linears
        if linear.expert is not None
    }
    (scores,) = TaylorUnits(cut=("experts",)).score(view, dataclasses.replace(seen, slopes=slopes)).values()
    sizes = torch.zeros(4)
    for linear in view.block.linears:
        if linear.expert is not None:
            sizes[linear.expert] += view.read(linear.path).abs().sum()
    assert torch.allclose(scores, sizes * torch.arange(4.0), rtol=1e-4)


def test_the_expansion_of_a_parabola_is_the_whole_of_it():
    """loss = a w + b w^2 / 2 changes by a w + b w^2 / 2 when w goes; with gradient a + b w at w and curvature b."""
    weight, a, b = (torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3))
    found = worth(weight, Slopes(a + b * weight, b), "mixed")
    assert torch.allclose(found, (a * weight + b * weight**2 / 2).abs())
