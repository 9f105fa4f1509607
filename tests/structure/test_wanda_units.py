"""The measure against its definition, and what it is when all inputs are alike."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.structure.views import view_of
from thrifty.core.moments import Moments
from thrifty.structure.wanda_units import WandaUnits


def test_a_gated_neuron(source_of):
    view, seen, read = view_of(source_of("llama"), "llama", "neurons", "heads")
    scores = {space.name: values for space, values in WandaUnits().score(view, seen).items()}
    gate, up, down = (view.read(f"{view.block.path}.mlp.{name}_proj") for name in ("gate", "up", "down"))
    into, inside = (read[name].square().mean(0).sqrt() for name in ("mlp.input", "mlp.hidden"))
    expected = (gate * into).norm(dim=1) + (up * into).norm(dim=1) + (down * inside).norm(dim=0)
    assert torch.allclose(scores["mlp.hidden"], expected, rtol=1e-4)


def test_inputs_that_are_all_alike_leave_the_weights(source_of):
    view, seen, _ = view_of(source_of("phi"), "phi", "heads")
    ones = {name: Moments(7, 0 * found.sum, torch.full_like(found.sum, 7.0)) for name, found in seen.inputs.items()}
    (even,) = WandaUnits().score(view, dataclasses.replace(seen, inputs=ones)).values()
    (unseen,) = WandaUnits().score(view, dataclasses.replace(seen, inputs={})).values()
    path = f"{view.block.path}.self_attn"
    rows = [view.read(f"{path}.{name}_proj")[:16] for name in "qkv"]
    expected = sum(part.norm() for part in rows) + view.read(f"{path}.dense")[:, :16].norm()
    assert torch.allclose(even, unseen)
    assert float(even[0]) == pytest.approx(float(expected), rel=1e-5)


def test_an_expert_that_no_token_chose_is_worth_nothing(source_of):
    view, seen, read = view_of(source_of("mixtral"), "mixtral", "experts")
    without = {name: found for name, found in seen.inputs.items() if "experts.2" not in name}
    (scores,) = WandaUnits(cut=("experts",)).score(view, dataclasses.replace(seen, inputs=without)).values()
    assert float(scores[2]) == 0
    assert (scores[[0, 1, 3]] > 0).all()
    path = f"{view.block.path}.mlp.experts.0"
    sizes = {name: read[f"mlp.experts.0.{name}"].square().sum(0).sqrt() for name in ("input", "hidden")}
    parts = [view.read(f"{path}.gate_proj") * sizes["input"], view.read(f"{path}.up_proj") * sizes["input"]]
    expected = sum(float(part.norm()) for part in [*parts, view.read(f"{path}.down_proj") * sizes["hidden"]])
    assert float(scores[0]) == pytest.approx(expected, rel=1e-4)
