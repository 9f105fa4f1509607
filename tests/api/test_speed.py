"""Speed of both models: where it is measured, and what is said where it is not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import thrifty
from tests.api.conftest import Bench
from tests.tiny import inputs, tiny
from thrifty.base import events

module = importlib.import_module("thrifty.pipeline.speed")
SIDES = {"before", "after"}


def test_small_models_are_timed_every_time(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_apart", None)
    for number in range(2):
        found = thrifty.compress(**bench.request, out=tmp_path / str(number))
        assert found["speed"]["decode_tokens_per_second"].keys() == SIDES


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_large_ones_are_timed_in_a_process_of_their_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "memory_needed", lambda source: 1 << 40)
    monkeypatch.setattr(module, "free_bytes", lambda: 1 << 50)
    folder = tiny(name, tmp_path / "model")
    rows = {"calibration": inputs(name, 8, 16), "evaluation": inputs(name, 2, 16, seed=1)}
    found = thrifty.compress(folder, "rtn: {bits: 4}", out=tmp_path / "out", **rows)
    key = "rows_per_second" if name == "vit" else "decode_tokens_per_second"
    assert found["speed"][key].keys() == SIDES and found["speed"]["threads"] == torch.get_num_threads()
    assert not list((tmp_path / "out").glob("speed*"))


@pytest.mark.parametrize(("free", "patience", "said"), [(0, 300, "0.0 GB are free"), (1 << 50, 0.01, "take longer")])
def test_what_cannot_be_timed_is_told(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, patience: float, said: str
) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "memory_needed", lambda source: 1 << 40)
    monkeypatch.setattr(module, "free_bytes", lambda: free)
    monkeypatch.setattr(module, "PATIENCE", patience)
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message) if event.kind == "note" else None):
        found = thrifty.compress(**bench.request, out=tmp_path / "out")
    assert found["speed"] is None and any("speed was not measured" in note and said in note for note in notes)


def test_a_sparse_matrix_has_the_bits_of_its_type(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model", dtype=torch.bfloat16)
    rows = {"calibration": inputs("llama", 8, 16), "evaluation": inputs("llama", 2, 16, seed=1)}
    found = thrifty.compress(folder, "sparse-50", out=tmp_path / "out", speed=False, **rows)
    assert {layer["bits"] for layer in found["layers"]} == {16.0} and found["bits_per_weight"] == 16
