"""The second trained model: image files through its processor, calibrated on some digits and judged on others, whose classes are known."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import thrifty
from thrifty.models.shell import main_output

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "bench" / "models" / "digits-vit"


@pytest.fixture(scope="module")
def images() -> types.ModuleType:
    """training/digits/images.py"""
    pytest.importorskip("PIL.Image")
    found = importlib.util.spec_from_file_location("digits_images", ROOT / "training" / "digits" / "images.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(images: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("digits")
    images.write(place)
    return place


def run(folder: Path, out: Path, steps: list[Any], samples: int = 64, held_out: int = 599) -> dict[str, Any]:
    data = {"calibration": {"images": str(folder / "train"), "samples": samples}}
    data["evaluation"] = {"images": str(folder / "held-out"), "samples": held_out}
    return thrifty.compress(MODEL, {**data, "steps": steps}, out=out, speed=False)


def quality(found: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(row for row in found["quality"] if row["metric"] == metric)


def test_the_split_is_fair_and_whole(images: types.ModuleType) -> None:
    (train, labels), (held_out, answers) = images.digits("train"), images.digits("held-out")
    assert len(train) == len(labels) == 1198 and len(held_out) == len(answers) == 599
    assert set(labels.tolist()) == set(answers.tolist()) == set(range(10))
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}
    assert train.shape[1:] == (8, 8) and train.max() == 240 and train.min() == 0


def test_digits_are_recognised_and_the_certificate_says_how_many(folder: Path, images: types.ModuleType, tmp_path: Path) -> None:
    """The accuracy of the certificate is that of the model called with the pixels of the table."""
    found = run(folder, tmp_path / "out", [{"rtn": {"bits": 4, "group_size": 32}}])
    row = quality(found, "accuracy")
    held_out, answers = images.digits("held-out")
    pixels = torch.from_numpy(held_out).float()[:, None].expand(-1, 3, -1, -1) / 255 * 2 - 1
    for place, key in ((MODEL, "before"), (tmp_path / "out", "after")):
        with torch.inference_mode():
            named = main_output(thrifty.load(place, torch.float32)(pixel_values=pixels)).argmax(1)
        assert row[key] == pytest.approx(float((named == torch.from_numpy(answers)).float().mean()), abs=1e-6)
    assert row["before"] >= 0.95
    assert abs(row["after"] - row["before"]) < 0.03
    assert found["accuracy"]["before"]["low"] < row["before"] < found["accuracy"]["before"]["high"]


def test_one_grid_for_all_channels_loses_less_after_coqmoe(folder: Path, tmp_path: Path) -> None:
    """The paper's baseline: one min-max grid of 4 bits for the inputs of each matrix, weights of 8 bits."""
    grid = {"rtn": {"bits": 8, "group_size": 0, "activation": {"static": {"bits": 4, "rule": "min_max"}}}}
    plain, found = (run(folder, tmp_path / str(len(steps)), [*steps, grid], held_out=200) for steps in ([], [{"coqmoe": {}}]))
    assert found["relative_error"]["value"] < 0.8 * plain["relative_error"]["value"]


@pytest.mark.parametrize("bits", [2, 3])
def test_recalibrated_weights_lose_less_than_weights_that_are_only_rounded(bits: int, folder: Path, tmp_path: Path) -> None:
    into = {"int": {"bits": bits, "group_size": 0, "range": "minmax"}}
    plain, found = (run(folder, tmp_path / name, [{"solve": {"by": name, "into": into}}], held_out=200) for name in ("round", "q_sam2"))
    assert found["relative_error"]["value"] < plain["relative_error"]["value"]
    assert sum("ridge" in layer["details"] for layer in found["layers"]) > len(found["layers"]) / 2


def test_features_heal_a_cut(folder: Path, tmp_path: Path) -> None:
    """Three of four neurons gone; forty steps on images without their classes."""
    cut = {"dgmr": {"ratio": 0.75, "refit": False}}
    found = run(folder, tmp_path / "out", [cut, {"distill_features": {"steps": 40, "batch": 16}}], samples=128)
    before, after = (link["relative_error"]["value"] for link in found["links"])
    assert after < 0.5 * before
