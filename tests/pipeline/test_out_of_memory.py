"""A device that runs out of memory: half as many rows at a time, said aloud, and the same result as with small batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import thrifty
from tests.tiny import inputs, tiny
from thrifty.base.errors import RunError
from thrifty.models import blocks
from thrifty.models.source import Source
from thrifty.pipeline import block as block_module
from thrifty.pipeline import walk


def compress(model: Path, out: Path) -> dict[str, Any]:
    rows = {"calibration": inputs("llama", 12, 16), "evaluation": inputs("llama", 12, 16, seed=1)}
    return thrifty.compress(model, "gptq: {bits: 4, group_size: 32}", out=out, speed=False, **rows)


@pytest.mark.parametrize("place", [block_module, walk])
@pytest.mark.parametrize("room", [6, 1])
def test_fewer_rows_at_a_time(place: Any, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", tmp_path / "model")
    first = compress(model, tmp_path / "whole")

    def tight(module: torch.nn.Module, hidden: torch.Tensor, call: blocks.Call) -> torch.Tensor:
        if hidden.shape[0] > room:
            raise torch.OutOfMemoryError("the device is full")
        return blocks.run_block(module, hidden, call)

    monkeypatch.setattr(place, "run_block", tight)
    found = compress(model, tmp_path / "out")
    said = [warning for warning in found["warnings"] if "out of memory" in warning]
    assert said and all("block order" in warning for warning in said)
    assert f"with {4 if room == 6 else 1} rows at a time" in said[-1]
    assert found["kl"]["value"] == pytest.approx(first["kl"]["value"], rel=0.2)


def test_not_even_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", tmp_path / "model")

    def full(*_: Any, **__: Any) -> torch.nn.Module:
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(Source, "block", full)
    with pytest.raises(RunError, match=r"out of memory on (cpu|cuda) even with one row at a time; use shorter --tokens"):
        compress(model, tmp_path / "out")
