"""The norm of a group against the sum of its members, taken by hand."""

from __future__ import annotations

import pytest
import torch

from tests.structure.views import view_of
from thrifty.structure.magnitude_units import MagnitudeUnits


def test_a_gated_neuron_and_a_group_of_heads(source_of):
    view, seen, _ = view_of(source_of("llama"), "llama", "neurons", "heads")
    scores = {space.name: values for space, values in MagnitudeUnits().score(view, seen).items()}
    path = view.block.path
    gate, up, down = (view.read(f"{path}.mlp.{name}_proj") for name in ("gate", "up", "down"))
    expected = (gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)).sqrt()
    assert torch.allclose(scores["mlp.hidden"], expected, rtol=1e-5)
    q, k, v, o = (view.read(f"{path}.self_attn.{name}_proj") for name in "qkvo")
    group = [q[32:], k[16:], v[16:], o[:, 32:]]  # the second of two key heads of 16, with its two query heads
    assert float(scores["attention.output"][1]) == pytest.approx(float(sum(part.square().sum() for part in group).sqrt()), rel=1e-5)


def test_biases_and_transposed_matrices_count(source_of):
    source = source_of("gpt2")
    view, seen, _ = view_of(source, "gpt2", "neurons")
    (scores,) = MagnitudeUnits().score(view, seen).values()
    path = view.block.path
    into, out = view.read(f"{path}.mlp.c_fc"), view.read(f"{path}.mlp.c_proj")
    bias = source.read(view.linear(f"{path}.mlp.c_fc").bias_source)
    assert torch.allclose(scores, (into.square().sum(1) + bias.square() + out.square().sum(0)).sqrt(), rtol=1e-5)


def test_a_whole_expert(source_of):
    view, seen, _ = view_of(source_of("mixtral"), "mixtral", "experts")
    (scores,) = MagnitudeUnits(cut=("experts",)).score(view, seen).values()
    path = f"{view.block.path}.mlp"
    own = [view.read(f"{path}.experts.3.{name}_proj").square().sum() for name in ("gate", "up", "down")]
    expected = (sum(own) + view.read(f"{path}.gate")[3].square().sum()).sqrt()
    assert float(scores[3]) == pytest.approx(float(expected), rel=1e-5)
