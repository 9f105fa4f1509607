"""Diffusion transformers from a recipe to a folder that plain diffusers loads, on rows that they make themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import thrifty
from tests.tiny import inputs, tiny
from thrifty.api.results import evaluate, export
from thrifty.base.errors import InputError
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.pipeline import trajectories
from thrifty.pipeline.trajectories import trajectory_rows

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("dit", tmp_path_factory.mktemp("dit") / "model")


def test_rows_are_those_of_diffusers_own_sampling(dit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside DDIM written out: x' = sqrt(a') (x - sqrt(1 - a) e) / sqrt(a) + sqrt(1 - a') e."""
    monkeypatch.setattr(trajectories, "TAKEN", trajectories.STEPS)
    rows = trajectory_rows(open_model(dit), "calibration", 32, seed=0)
    assert rows.rows == 32 and len(set(rows.inputs["class_labels"].tolist())) == 2
    model = diffusers.DiTTransformer2DModel.from_pretrained(dit).eval()
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    order = (torch.arange(2)[:, None] * 16 + rows.inputs["timestep"].reshape(2, 16).argsort(dim=1, descending=True)).flatten()
    steps = rows.inputs["timestep"][order].reshape(2, 16)
    assert torch.equal(steps[0], steps[1]) and bool((steps[0].diff() < 0).all()) and steps.min() >= 0 and steps.max() < 1000
    latents = rows.inputs["hidden_states"][order].reshape(2, 16, 4, 8, 8)
    for number, (step, later) in enumerate(zip(steps[0][:-1].tolist(), steps[0][1:].tolist(), strict=True)):
        here = {"hidden_states": latents[:, number], "timestep": steps[:, number], "class_labels": rows.inputs["class_labels"][::16]}
        with torch.no_grad():
            noise = model(**here).sample[:, :4].double()
        clean = (latents[:, number] - (1 - kept[step]).sqrt() * noise) / kept[step].sqrt()
        expected = kept[later].sqrt() * clean + (1 - kept[later]).sqrt() * noise
        torch.testing.assert_close(latents[:, number + 1].double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_rows_are_the_same_again_and_others_to_judge_on(dit: Path) -> None:
    source = open_model(dit)
    first, again, other = (trajectory_rows(source, purpose, 5, 0) for purpose in ("calibration", "calibration", "evaluation"))
    assert first.digest == again.digest != other.digest
    assert first.rows == 5 and len(set(first.inputs["timestep"].tolist())) == 5, "spread over the way"


def test_a_schedule_beside_the_weights_is_taken(dit: Path, tmp_path: Path) -> None:
    folder = tiny("dit", tmp_path / "pipeline" / "transformer")
    diffusers.DDIMScheduler(num_train_timesteps=50, clip_sample=False).save_pretrained(tmp_path / "pipeline" / "scheduler")
    assert int(trajectory_rows(open_model(folder), "calibration", 16, 0).inputs["timestep"].max()) < 50
    (folder / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "none of these"}))
    with pytest.raises(InputError, match="no schedule that diffusers takes"):
        trajectory_rows(open_model(folder), "calibration", 16, 0)


def test_from_nothing_but_the_folder(dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated and judged on rows of its own; what diffusers loads puts out what the walk did; a second look finds the same error."""
    monkeypatch.setattr(trajectories, "STEPS", 4)
    recipe = {"calibration": {"samples": 12}, "evaluation": {"samples": 8}, "steps": [{"gptq": {"bits": 4, "group_size": 32}}]}
    found = thrifty.compress(dit, recipe, out=tmp_path / "out", verify="full", speed=False)
    certificate = Certificate.read(tmp_path / "out")
    assert certificate.model.kind == "diffusion" and found["data"]["calibration"]["rows"] == 12
    assert all(layer.tokens == (12 if layer.role == "other" else 12 * 16) for layer in certificate.layers)
    assert any("diffusers reads no such codes" in warning for warning in certificate.warnings)
    stored = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    linear = open_model(dit).anatomy.blocks[1].stages[1].linears[0]
    groups = stored[linear.source].reshape(64, 2, 32)
    assert all(len(group.unique()) <= 16 for row in groups for group in row), "four bits"
    again = evaluate(tmp_path / "out", against=dit, samples=8)
    assert again["relative_error"]["value"] == pytest.approx(found["relative_error"]["value"], rel=1e-3)
    assert 0 < again["relative_error"]["value"] < 0.1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from diffusers import DiTTransformer2DModel" in card and "library_name: diffusers" in card
    export(tmp_path / "out", "dense", tmp_path / "dense")
    assert load_file(tmp_path / "dense" / "diffusion_pytorch_model.safetensors").keys() == stored.keys()
    with pytest.raises(InputError, match="one of diffusers"):
        export(tmp_path / "out", "gguf")


@pytest.mark.parametrize(
    ("steps", "settings", "words"),
    [
        ([{"rtn": {}}], {"format": "thrifty"}, "diffusers does not read the container"),
        ([{"rtn": {"bits": 8, "group_size": 0, "activation": "dynamic"}}], {}, "no reader would round the inputs"),
        ([{"magnitude_units": {"ratio": 0.5}}], {}, "DiTTransformer2DModel is of diffusers"),
        ([{"rotate": {}}, {"rtn": {}}], {}, "it is diffusion"),
        ([{"rtn": {}}, {"next_token": {}}], {}, "needs a causal language model"),
        ([{"gptq": {}}], {"calibration": "some.txt"}, "makes its own rows from noise"),
    ],
)
def test_what_is_not_for_them_is_refused_in_a_sentence(steps, settings, words, dit: Path, tmp_path: Path) -> None:
    rows = {"calibration": inputs("dit", 2, 0), "evaluation": inputs("dit", 2, 0), **settings}
    with pytest.raises(InputError, match=words):
        thrifty.compress(dit, {"steps": steps}, out=tmp_path / "out", **rows)
    assert not (tmp_path / "out").exists()


def test_codes_are_tuned_on_rows_that_differ_in_time(dit: Path, tmp_path: Path) -> None:
    """What rows carry is no part of what a block is healed by, and comes through to the next block."""
    rows = {"calibration": inputs("dit", 6, 0), "evaluation": inputs("dit", 2, 0, seed=1)}
    steps = [{"auto_round": {"bits": 3, "group_size": 32, "iterations": 4}, "only": ["*.attn1.*"]}]
    found = thrifty.compress(dit, {"steps": steps}, out=tmp_path / "out", speed=False, verify="full", **rows)
    assert 0 < found["relative_error"]["value"] < 0.5
