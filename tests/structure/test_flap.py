"""FLAP: the score by its definition, and that compensation leaves no mean error on calibration data."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.structure.views import view_of
from thrifty.base.records import Cut
from thrifty.structure.base import choose
from thrifty.structure.flap import Flap


def test_the_score(source_of):
    view, seen, read = view_of(source_of("llama"), "llama", "neurons", "heads")
    scores = {space.name: values for space, values in Flap().score(view, seen).items()}
    down, o = view.read(f"{view.block.path}.mlp.down_proj"), view.read(f"{view.block.path}.self_attn.o_proj")
    neurons = read["mlp.hidden"].var(0, unbiased=False) * down.square().sum(0)
    assert torch.allclose(scores["mlp.hidden"], (neurons - neurons.mean()) / neurons.std(), atol=1e-3)
    channels = (read["attention.output"].var(0, unbiased=False) * o.square().sum(0)).square()
    expected = ((channels - channels.mean()) / channels.std()).reshape(2, 32).mean(1)
    assert torch.allclose(scores["attention.output"], expected, atol=1e-3)


@pytest.mark.parametrize(("name", "reader"), [("llama", "mlp.down_proj"), ("gpt2", "mlp.c_proj"), ("phi", "self_attn.dense")])
def test_no_mean_error_is_left_on_calibration_data(name, reader, source_of):
    kinds = ("heads",) if "attn" in reader else ("neurons",)
    source = source_of(name)
    path = f"{source.anatomy.blocks[0].path}.{reader}"
    view, seen, read = view_of(source, name, *kinds, biases={path: "new.bias"})
    (scores,) = Flap().score(view, seen).values()
    (units,) = view.units
    item = Cut(units, choose(scores, units.count // 2))
    change = Flap().compensate(view, [item], seen)
    inputs, weight = read[units.space.name], view.read(path)
    stays = torch.zeros(weight.shape[1]).index_fill(0, item.keep, 1.0) if units.space.unit_size == 1 else None
    if stays is None:
        stays = torch.zeros(units.count).index_fill(0, item.keep, 1.0).repeat_interleave(units.space.unit_size)
    before = inputs @ weight.T + view.bias(path)
    cut = (inputs * stays) @ weight.T
    assert torch.allclose((cut + change.biases[path]).mean(0), before.mean(0), atol=1e-5)
    assert not torch.allclose((cut + view.bias(path)).mean(0), before.mean(0), atol=1e-3)
    assert float((cut + change.biases[path] - before).square().mean()) < float((cut + view.bias(path) - before).square().mean())


def test_without_a_place_for_it_there_is_no_bias(source_of):
    view, seen, _ = view_of(source_of("llama"), "llama", "neurons")
    (units,) = view.units
    item = Cut(units, torch.arange(40))
    assert not Flap().compensate(view, [item], seen).biases
    view, seen, _ = view_of(source_of("gpt2"), "gpt2", "neurons")
    item = Cut(view.units[0], torch.arange(40))
    assert not Flap(compensate_bias=False).compensate(view, [item], seen).biases


def test_a_neuron_that_never_varies_goes_first_and_costs_nothing(source_of):
    view, seen, _ = view_of(source_of("llama"), "llama", "neurons")
    found = seen.inputs["mlp.hidden"]
    mean = found.sum.clone()
    squares = found.square_sum.clone()
    mean[5], squares[5] = 3.0 * found.tokens, 9.0 * found.tokens
    steady = dataclasses.replace(found, sum=mean, square_sum=squares)
    (scores,) = Flap().score(view, dataclasses.replace(seen, inputs={**seen.inputs, "mlp.hidden": steady})).values()
    assert int(scores.argmin()) == 5
