"""The loop of the scripts that train small models: a stopped run ends where an undisturbed one does, at the rate that is told."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import types
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def common() -> types.ModuleType:
    """training/common.py"""
    found = importlib.util.spec_from_file_location("training_common", Path(__file__).parents[2] / "training" / "common.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module
    found.loader.exec_module(module)
    return module


def trained(common: types.ModuleType, out: Path, best: bool, stops: int = 0) -> tuple[torch.Tensor, list[int]]:
    """(the weights after 12 steps, after which of them the model was written); stopped and begun anew so many times."""
    tokens, seen, written = torch.arange(100.0).sin(), [], []
    for attempt in range(stops + 1):
        torch.manual_seed(attempt)
        model = torch.nn.Linear(4, 1)
        seconds = 1e-9 if attempt < stops else 0.0  # the first step of an attempt is already too late
        arguments = argparse.Namespace(tokens=12 * 2 * 4, batch=2, rate=0.1, every=4, seconds=seconds, out=out)

        def lost(step: int, model: torch.nn.Linear = model) -> torch.Tensor:
            seen.append(step)
            rows = common.windows(tokens, step, 2, 4)
            return (model(rows[:, :-1]) - rows[:, -1:]).square().mean()

        optimizer = torch.optim.AdamW(common.groups(model, 0.1))
        common.Loop(model, optimizer, arguments, 4, 4, 1e9, lost, lambda: 1.0, lambda _: written.append(seen[-1] + 1), best).run()
    assert seen == list(range(12))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), written


@pytest.mark.parametrize("best", [True, False])
def test_a_stopped_run_ends_where_an_undisturbed_one_does(common: types.ModuleType, best: bool, tmp_path: Path) -> None:
    whole, written = trained(common, tmp_path / "whole", best)
    assert written == ([4] if best else [12]), "no later judgement was better"
    stopped, written = trained(common, tmp_path / "stopped", best, stops=2)
    assert torch.equal(stopped, whole) and written == ([4] if best else [1, 2, 12])


def test_the_rate_rises_and_falls(common: types.ModuleType) -> None:
    rates = [common.rate(step, 100, 3.0, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.3 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(3.0) and rates[55] == pytest.approx(3.0 * (0.02 + 0.98 * (1 + math.cos(math.pi / 2)) / 2))
    assert rates[100] == pytest.approx(0.06) and rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_decay(common: types.ModuleType) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    model.register_parameter("A_log", torch.nn.Parameter(torch.zeros(2, 2)))
    decayed, plain = common.groups(model, 0.2, never="A_log")
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)] and decayed["weight_decay"] == 0.2
    assert sorted(tuple(p.shape) for p in plain["params"]) == [(2, 2), (4,), (4,), (4,)] and plain["weight_decay"] == 0.0
