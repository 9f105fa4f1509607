"""Blocks that are tuned against the original's output once they are solved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import thrifty
from tests.tiny import inputs, tiny
from thrifty.base.errors import InputError
from thrifty.measure.certificate import Certificate
from thrifty.pipeline.folder import RunFolder

RECIPE = {"steps": [{"auto_round": {"bits": 2, "group_size": 16, "symmetric": False, "iterations": 20, "batch": 4}}]}


def run(model: Path, out: Path, name: str = "llama", recipe: object = RECIPE) -> Certificate:
    rows = {"calibration": inputs(name, 6, 16), "evaluation": inputs(name, 2, 16, seed=1)}
    thrifty.compress(model, recipe, out=out, speed=False, **rows)
    return Certificate.read(out)


def hidden(model: torch.nn.Module, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """What leaves the first block."""
    with torch.no_grad():
        return model(**rows, output_hidden_states=True).hidden_states[1].float()


def test_the_error_of_a_block_is_that_between_both_models(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    certificate = run(model, tmp_path / "out")
    first = certificate.layers[0].details
    rows = inputs("llama", 6, 16)
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    difference = hidden(original, rows) - hidden(thrifty.load(tmp_path / "out", dtype=torch.float32), rows)
    assert first["block_error"] == pytest.approx(float(difference.square().mean()), rel=1e-3)
    by_block = {layer.name.split(".")[2]: layer.details for layer in certificate.layers}
    assert len(by_block) > 1
    assert all(details["block_error"] <= details["block_error_before"] for details in by_block.values())
    assert any(details["block_error"] < 0.98 * details["block_error_before"] for details in by_block.values())
    assert all(layer.relative_error > 0 for layer in certificate.layers)


def test_a_stopped_run_goes_on_with_the_rows_of_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        """Stands for a kill."""

    model = tiny("llama", tmp_path / "model")
    run(model, tmp_path / "whole")
    real = RunFolder.finish

    def stopping(self: RunFolder, record: object) -> None:
        real(self, record)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", stopping)
        with pytest.raises(Stopped):
            run(model, tmp_path / "out")
    run(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_what_was_pruned_before_would_not_stay_so(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    with pytest.raises(InputError, match="would not keep what an earlier step pruned"):
        run(model, tmp_path / "out", recipe={"steps": [{"wanda": {}}, *RECIPE["steps"]]})
