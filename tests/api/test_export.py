"""An export that is loaded by the library it is for and must answer as the result does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import thrifty
from tests.tiny import inputs, tiny
from thrifty import api
from thrifty.base.errors import InputError, RunError
from thrifty.export import gguf

GRID = {"gptq": {"bits": 4, "group_size": 32}}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model inside the package at 4 bits."""
    out = tmp_path_factory.mktemp("result") / "small"
    few = {"samples": 2, "tokens": 64}
    thrifty.compress(recipe={"calibration": few, "evaluation": few, "steps": [{"rtn": GRID["gptq"]}]}, out=out, speed=False)
    return out


@pytest.mark.parametrize("to", ["dense", "thrifty", "gguf"])
def test_what_was_written_answers_as_the_result_does(to: str, result: Path, tmp_path: Path) -> None:
    found = api.export(result, to, tmp_path / "out.gguf", verify="full")
    assert found["difference"] <= 1e-4
    assert (tmp_path / "out.gguf").exists()
    assert "difference" not in api.export(result, to, tmp_path / "again.gguf")


def test_an_export_that_answers_otherwise_is_taken_away(result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of another model: its final norm is twice as large."""
    other, whole = shutil.copytree(result, tmp_path / "other"), gguf.write
    tensors = load_file(other / "model.safetensors")
    save_file(tensors | {"model.norm.weight": 2 * tensors["model.norm.weight"]}, other / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(gguf, "write", lambda folder, out: whole(other, out))
    with pytest.raises(RunError, match=r"transformers gives outputs of .*differ by .*; it was removed"):
        api.export(result, "gguf", tmp_path / "out.gguf", verify="full")
    assert not (tmp_path / "out.gguf").exists()


def test_what_cannot_be_compared_is_said_before_anything_is_written(tmp_path: Path, result: Path) -> None:
    thrifty.compress(tiny("vit", tmp_path / "vit"), {"steps": [{"rtn": {}}]}, inputs("vit", 2, 16), out=tmp_path / "small", speed=False)
    with pytest.raises(InputError, match=r"outputs are compared on text, and .*small is a model of kind vision"):
        api.export(tmp_path / "small", "dense", tmp_path / "out", verify="full")
    with pytest.raises(InputError, match="is not run here"):
        api.export(result, "aqlm", tmp_path / "out", verify="full")
    assert not (tmp_path / "out").exists()
