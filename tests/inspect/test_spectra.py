"""What `thrifty inspect spectra` says: the figures of the matrices, means by block, and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny
from tests.weights.problems import draw
from thrifty.api.inspecting import spectra
from thrifty.base.errors import InputError
from thrifty.cli.main import main
from thrifty.core.spectra import effective_rank, eigenvalues, farms, hill, stable_rank
from thrifty.inspect.spectra import by_block, spectrum
from thrifty.models import open_model


def test_one_matrix() -> None:
    weight = draw(0, 30, 50)
    found = spectrum(weight, "a", "up", 3, "median", 10, 4)
    values = torch.linalg.svdvals(weight).square()
    assert found.alpha == pytest.approx(hill(values)) and found.farms_alpha == farms(weight, 10, 1.0, 4, "median")
    assert found.stable_rank == pytest.approx(stable_rank(values)) and found.effective_rank == pytest.approx(effective_rank(values))
    other = spectrum(draw(1, 30, 30), "b", "down", 3, "median")
    assert [mean.block for mean in by_block([found, other])] == [3]
    assert by_block([found, other])[0].alpha == pytest.approx((found.alpha + other.alpha) / 2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    model = tiny(name, tmp_path / "model")
    anatomy = open_model(model).anatomy
    for ending in ("png", "svg"):
        assert main(["inspect", "spectra", str(model), "--rule", "median", "--out", str(tmp_path / f"p.{ending}"), "--json"]) == 0
        told = json.loads(capfd.readouterr().out)
        assert {layer["name"] for layer in told["layers"]} >= {
            linear.path for linear in anatomy.linears if linear.role not in ("qkv", "gate_up")
        }
        assert len(told["blocks"]) == len(anatomy.blocks)
        source = open_model(model)
        linear = next(linear for linear in anatomy.linears if linear.role == "down" or linear.role == "fc2")
        layer = next(layer for layer in told["layers"] if layer["name"] == linear.path)
        assert layer["alpha"] == pytest.approx(hill(eigenvalues(source.read(linear.source))), rel=1e-6)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (tmp_path / "p.svg").read_bytes()
    fused = [linear for linear in anatomy.linears if linear.role == "qkv"]
    assert len(told["layers"]) == len(anatomy.linears) + 2 * len(fused)
    assert main(["inspect", "spectra", str(model)]) == 0
    assert "farms alpha" in capfd.readouterr().out


def test_mistakes_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    for words, said in (
        ({"out": tmp_path / "a.jpg"}, "end in .png or .svg"),
        ({"out": tmp_path / "there.png"}, "exists"),
        ({"out": tmp_path / "no" / "a.png"}, "is not a folder"),
        ({"side": 1}, "side must be at least 2"),
        ({"positions": 0}, "positions must be at least 1"),
    ):
        with pytest.raises(InputError, match=said):
            spectra(tmp_path / "missing", **words)
