"""Sizes against hand counts and against the safetensors library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from thrifty.base.errors import InputError
from thrifty.measure.size import bits_per_weight, matrix_bytes, tensor_bytes, weight_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(
        {
            "a.weight_packed": torch.zeros(64, 16, dtype=torch.int32),
            "a.weight_scale": torch.zeros(64, 4, dtype=torch.bfloat16),
            "a.weight_zero_point": torch.zeros(8, 4, dtype=torch.int32),
            "a.weight_shape": torch.tensor([64, 128]),
            "a.bias": torch.zeros(64),
        },
        tmp_path / "model-00001-of-00002.safetensors",
        metadata={"format": "pt"},
    )
    save_file({"b.weight": torch.zeros(8, 4), "experts": torch.zeros(2, 3, 4)}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_headers_tell_the_bytes_of_every_tensor(folder: Path):
    found = tensor_bytes(folder)
    assert found["a.weight_packed"] == 64 * 16 * 4
    assert found["b.weight"] == 8 * 4 * 4
    assert len(found) == 7


def test_a_matrix_counts_codes_scales_and_zero_points_but_no_bias(folder: Path):
    stored = matrix_bytes(tensor_bytes(folder), "a.weight")
    assert stored == 4096 + 512 + 128 + 16
    assert bits_per_weight({"a": stored}, {"a": 64 * 128}) == pytest.approx(8 * 4752 / 8192)
    assert matrix_bytes(tensor_bytes(folder), "b.weight") == 128
    assert matrix_bytes(tensor_bytes(folder), "experts") == 96


def test_weight_files_alone_count(folder: Path):
    expected = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert weight_bytes(folder) == expected


def test_mean_bits_weigh_matrices_by_their_weights():
    assert bits_per_weight({"a": 100, "b": 400}, {"a": 200, "b": 200}) == pytest.approx(8 * 500 / 400)


def test_what_is_not_there_is_refused(tmp_path: Path, folder: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no weight file"):
        weight_bytes(tmp_path / "empty")
    with pytest.raises(InputError, match="stores no weight"):
        matrix_bytes({}, "c.weight")
    with pytest.raises(InputError):
        bits_per_weight({"a": 1}, {"b": 1})
    with pytest.raises(InputError):
        bits_per_weight({}, {})
    for broken in (b"abc", b"\xff" * 8, b"\x05" + b"\0" * 7 + b"notjs"):
        (tmp_path / "empty" / "model.safetensors").write_bytes(broken)
        with pytest.raises(InputError, match="not a whole safetensors file"):
            tensor_bytes(tmp_path / "empty")
