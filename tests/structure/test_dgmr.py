"""DGMR: the picks by definition, the refit as least squares, and both against other choices on the model inside the package."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.core.test_selection import gram_schmidt
from tests.structure.views import view_of
from thrifty.base.records import Cut
from thrifty.core.statistics import Statistics
from thrifty.structure.base import choose
from thrifty.structure.dgmr import DGMR
from thrifty.structure.magnitude_units import MagnitudeUnits
from thrifty.structure.random_units import RandomUnits


def looked_at(source_of, name):
    """(view, seen with products, inputs of each stage, the one kind of units)."""
    view, seen, read = view_of(source_of(name), name, "neurons")
    grams = {space: Statistics.of(values) for space, values in read.items()}
    (units,) = view.units
    return view, dataclasses.replace(seen, grams=grams), read, units


@pytest.mark.parametrize(("name", "writers"), [("llama", ["gate_proj", "up_proj"]), ("vit", ["fc1"])])
def test_the_picks_are_those_of_gram_schmidt_on_what_writes_the_neurons(name, writers, source_of):
    view, seen, _, units = looked_at(source_of, name)
    (scores,) = DGMR().score(view, seen).values()
    rows = torch.cat([view.read(f"{view.block.path}.mlp.{writer}") for writer in writers], 1).double()
    kept = DGMR().kept(units)
    assert choose(scores, kept).tolist() == sorted(gram_schmidt(rows, kept))


def test_of_neurons_that_are_the_same_one_stays(source_of):
    """Every second neuron is made a copy of the one before; a choice by norm keeps both of the longest pairs."""
    view, seen, _, units = looked_at(source_of, "llama")
    read, values = view.read, view.values

    def doubled(matrix, dim):
        index = torch.arange(units.count) // 2 * 2
        return matrix.index_select(dim, index)

    view.read = lambda path: doubled(read(path), 1 if "down" in path else 0)
    view.values = lambda of, member: doubled(values(of, member), 0)
    (scores,) = DGMR().score(view, seen).values()
    assert len({index // 2 for index in choose(scores, units.count // 2).tolist()}) == units.count // 2
    (norms,) = MagnitudeUnits(cut=("neurons",)).score(view, seen).values()
    assert len({index // 2 for index in choose(norms, units.count // 2).tolist()}) < units.count // 2


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_the_refit_is_least_squares_and_uses_a_bias_where_there_is_one(name, source_of):
    view, seen, read, units = looked_at(source_of, name)
    keep = torch.arange(0, units.count, 3)
    change = DGMR(damp=0.0).compensate(view, [Cut(units, keep)], seen)
    (path,) = change.weights
    hidden = read[units.space.name].double()
    wanted = hidden @ view.read(path).T.double()
    design = hidden[:, keep]
    if name == "vit":
        design = torch.cat([design, torch.ones(len(hidden), 1)], 1)
    best = (design @ torch.linalg.lstsq(design, wanted).solution - wanted).square().sum()
    found = hidden[:, keep] @ change.weights[path][:, keep].T.double()
    if name == "vit":
        found += (change.biases[path] - view.bias(path)).double()
    else:
        assert not change.biases
    before = (hidden[:, keep] @ view.read(path)[:, keep].T.double() - wanted).square().sum()
    assert float((found - wanted).square().sum()) <= float(best) + 1e-3 * float(before)
    assert not DGMR(refit=False).compensate(view, [Cut(units, keep)], seen).weights


def test_activations_span_more_than_other_choices_leave(source_of):
    """By what the neurons put out: the refit leaves less error than behind choices by norm and at random; least, where it is asked for."""
    view, seen, read, units = looked_at(source_of, "vit")
    hidden = read[units.space.name].double()
    left = {}
    for step in (DGMR(by="activations"), DGMR(by="outputs"), MagnitudeUnits(cut=("neurons",)), RandomUnits(cut=("neurons",))):
        (scores,) = step.score(view, seen).values()
        keep = choose(scores, 16)
        change = DGMR().compensate(view, [Cut(units, keep)], seen)
        ((path, matrix),) = change.weights.items()
        found = hidden[:, keep] @ matrix[:, keep].T.double() + (change.biases[path] - view.bias(path))
        left[getattr(step, "by", step.name)] = float((found - hidden @ view.read(path).T.double()).square().sum())
    assert left["outputs"] < left["activations"] < min(left["magnitude_units"], left["random_units"])
