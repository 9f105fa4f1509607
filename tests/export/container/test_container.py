"""Folders in the container: they come back, and whatever is wrong with one is said in one sentence."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.export.container.mutations import READINGS, WEIGHTS, good_folder, header_of, mutated, with_header
from thrifty.base.errors import InputError
from thrifty.core.reading import Reading
from thrifty.export.container import Container, container_config
from thrifty.export.shards import stored_in

MUTATIONS = 400


@pytest.fixture
def good(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    return tmp_path / "good", good_folder(tmp_path / "good")


def opened(folder: Path) -> Container:
    config = json.loads((folder / "config.json").read_text())
    return Container(folder, config["quantization_config"], stored_in(folder))


def changed(folder: Path, change: Any) -> Path:
    """The folder with another `quantization_config`."""
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def of_type(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The group of the K-quants of this type."""
    return next(group for group in config["groups"] if group.get("type") == kind)


def test_every_tensor_comes_back(good: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = good
    container = opened(folder)
    assert container.shapes == {key: tuple(values.shape) for key, values in expected.items()}
    assert list(container.plain) == ["plain.weight"]
    for key, values in expected.items():
        assert torch.equal(container.read(key), values), key


def test_what_is_done_to_inputs_comes_back(good: tuple[Path, dict[str, Tensor]]) -> None:
    container = opened(good[0])
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert container.readings.keys() == READINGS.keys() and container.rounds
    for key, reading in READINGS.items():
        inputs = torch.randn(5, container.encoded(key).shape[1], generator=torch.Generator().manual_seed(1))
        assert torch.equal(container.readings[key](inputs), reading(inputs))
    codes = container.encoded("a.weight").decode()
    torch.testing.assert_close(rows @ container.read("a.weight").T, Reading(40)(rows) @ codes.T, rtol=1e-5, atol=1e-4)


def test_files_that_leave_inputs_alone_have_the_first_version(good: tuple[Path, dict[str, Tensor]]) -> None:
    folder = changed(good[0], lambda config: (config.update(version=1), config.pop("inputs")))
    container = opened(folder)
    assert not container.readings and not container.rounds
    assert torch.equal(container.read("a.weight"), container.encoded("a.weight").decode())
    config = container_config(container.matrices, {})
    assert config["version"] == 1 and "inputs" not in config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(version=3), "has version 3; this thrifty reads versions 1 and 2: update it"),
        (lambda config: config.update(version=1), "unknown key 'inputs'"),
        (lambda config: config.update(inputs={}), "inputs must be a list"),
        (lambda config: config["inputs"].append(3), "inputs 4 has no matrices"),
        (lambda config: config["inputs"].append({"turn": 4, "matrices": ["x"]}), "there is no matrix 'x'"),
        (lambda config: config["inputs"].append({"turn": 4, "matrices": ["h.experts.0.0"]}), r"there is no matrix 'h\.experts\.0\.0'"),
        (lambda config: config["inputs"].append({"turn": 4, "matrices": ["a.weight"]}), "a.weight is there twice"),
        (lambda config: config["inputs"].append({"turn": 4, "matrices": ["c.weight"]}), "has a layout whose inputs stay as they are"),
        (lambda config: config["inputs"].append({"turn": 4, "matrices": ["f.weight"]}), "has a layout whose inputs stay as they are"),
        (
            lambda config: config["inputs"][3].update(turn=32),
            "blocks of 32 do not divide the 48 inputs of e.weight",
        ),
        (lambda config: config["inputs"][0].update(turn=6), "no hadamard matrix of order 6 is known"),
        (lambda config: config["inputs"][0].update(turn=2**31 - 1), "no hadamard matrix of order 2147483647 is known"),
        (lambda config: config["inputs"][0].update(bits=9), "bits is wrong"),
        (lambda config: config["inputs"][0].update(bits=True), "bits is wrong"),
        (lambda config: config["inputs"][0].update(scale=1.0), "a fixed grid has bits, a scale and a zero point"),
        (lambda config: config["inputs"][0].update(surprise=1), "surprise is wrong"),
        (lambda config: config["inputs"].append({"matrices": []}), "nothing is done to the inputs"),
        (lambda config: config["inputs"].append({"bits": 8, "per": "group", "matrices": []}), "mx and nvfp4 have scales of groups"),
        (lambda config: config["inputs"].append({"bits": 8, "standard": "mxfp8", "matrices": []}), "mx and nvfp4 have scales of groups"),
        (lambda config: config["inputs"].append({"bits": 4, "standard": "fp8", "matrices": []}), "fp8 has bits of its own"),
        (lambda config: config["inputs"].append({"bits": 8, "standard": "mxfp6", "matrices": []}), "standard is wrong"),
        (
            lambda config: config["inputs"].append({"bits": 4, "per": "group", "standard": "nvfp4", "matrices": []}),
            "nvfp4 has a fixed one above them",
        ),
        (
            lambda config: config["inputs"].__setitem__(3, {"bits": 8, "per": "group", "standard": "mxfp8", "matrices": ["e.weight"]}),
            "groups of 32 do not divide the 48 inputs of e.weight",
        ),
        (lambda config: config.update(quant_method="gptq"), "is not of thrifty"),
        (lambda config: config.update(extra=1), "unknown key 'extra'"),
        (lambda config: config.update(groups=3), "groups must be a list"),
        (lambda config: config["groups"].append({"layout": "int"}), "has no matrices"),
        (lambda config: config["groups"].append({"layout": "lattice", "matrices": {}}), "unknown layout 'lattice'"),
        (lambda config: config["groups"][0].update(levels=1), "levels of layout int is wrong"),
        (lambda config: config["groups"][0].update(surprise=1), "surprise of layout int is wrong"),
        (lambda config: config["groups"].append(config["groups"][0]), "a.weight is there twice"),
        (lambda config: config["groups"][0]["matrices"].update({"a.weight": [0, 40]}), "must be 2 whole numbers"),
        (lambda config: config["groups"][0]["matrices"].update({"a.weight": [6, 2**30]}), "cannot lie in the"),
        (
            lambda config: (config.pop("inputs"), config["groups"][0]["matrices"].update({"a.weight": [6, 48]})),
            "holds 90 values where its matrix needs 108|holds 30 values where its matrix needs 36",
        ),
        (lambda config: of_type(config, "Q4_K")["matrices"].update({"k.weight": [4, 128]}), "blocks of 256 do not divide 128 inputs"),
        (lambda config: of_type(config, "Q4_K").update(type="Q5_K"), "holds 288 values where its matrix needs 352"),
        (lambda config: of_type(config, "Q4_K").update(type="Q8_K"), "type of layout k_quant is wrong"),
        (lambda config: config["groups"][0].update(group_size=7), "groups of 7 do not divide 40 inputs"),
        (lambda config: config["stacked"].update({"h.experts": [2, 9, 16]}), "do not fill|does not follow"),
        (lambda config: config["stacked"].update({"h.experts": [1, 8, 16]}), "do not fill|does not follow"),
        (lambda config: config.pop("stacked"), ""),
    ],
)
def test_configs_that_are_refused(change: Any, message: str, good: tuple[Path, dict[str, Tensor]]) -> None:
    folder = changed(good[0], change)
    if not message:  # then its parts are matrices of their own
        assert "h.experts.0.3" in opened(folder).shapes
        return
    with pytest.raises(InputError, match=message):
        container = opened(folder)
        for key in container.shapes:
            container.read(key)


def with_bytes(folder: Path, name: str, byte: int) -> Path:
    """The folder with one byte all over one tensor."""
    found = header_of((folder / WEIGHTS).read_bytes())
    assert found is not None
    header, rest = found
    start, stop = header[name]["data_offsets"]
    (folder / WEIGHTS).write_bytes(with_header(header, rest[:start] + bytes([byte]) * (stop - start) + rest[stop:]))
    return folder


@pytest.mark.parametrize(
    ("name", "byte", "message"),
    [
        ("f.weight.order", 255, r"tensor f\.weight\.order holds a code that is not below 9"),
        ("d.weight", 255, r"tensor d\.weight holds a code that is not below 5"),
        ("b.weight.mask", 255, r"tensor b\.weight holds .* values where its matrix needs"),
        ("d.weight.scale", 255, r"tensor d\.weight\.scale holds numbers that are not finite"),
        ("d.weight.scale", 126, r"tensor d\.weight stands for numbers that are not finite"),  # once its inputs are turned back
        ("e.weight.whole", 0, r"tensor e\.weight\.whole is no positive number"),
        ("i.weight.codebooks", 255, r"tensor i\.weight\.codebooks holds numbers that are not finite"),
        ("j.weight", 255, r"tensor j\.weight holds numbers that are not finite"),
        ("f.weight.levels", 0, r"tensor f\.weight\.levels does not rise"),
    ],
)
def test_parts_that_are_refused(name: str, byte: int, message: str, good: tuple[Path, dict[str, Tensor]]) -> None:
    container = opened(with_bytes(good[0], name, byte))
    owner = name.split(".")[0] + ".weight"
    with pytest.raises(InputError, match=f"{WEIGHTS}: {message}"):
        container.read(owner)


def test_an_order_that_does_not_fit_the_codes(good: tuple[Path, dict[str, Tensor]]) -> None:
    folder = good[0]
    container = opened(with_bytes(folder, "f.weight.order", 0))
    with pytest.raises(InputError, match=r"f\.weight holds \d+ values where its matrix needs"):
        container.read("f.weight")


def test_a_part_that_is_missing(good: tuple[Path, dict[str, Tensor]]) -> None:
    folder = good[0]
    found = header_of((folder / WEIGHTS).read_bytes())
    assert found is not None
    del found[0]["a.weight.zero_point"]
    (folder / WEIGHTS).write_bytes(with_header(*found))
    with pytest.raises(InputError, match=r"tensor a\.weight\.zero_point is missing"):
        opened(folder).read("a.weight")


def test_broken_folders_give_a_clear_error_or_decode(good: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, _ = good
    content, config = (folder / WEIGHTS).read_bytes(), json.loads((folder / "config.json").read_text())
    refused = 0
    for done, weights, text in mutated(content, config, MUTATIONS, seed=0):
        refused += survives(folder, done, weights, text)
    assert MUTATIONS / 3 < refused < MUTATIONS  # some changes are to values alone


def survives(folder: Path, done: str, weights: bytes, text: str) -> bool:
    """Whether a broken folder was refused; fails on anything but an InputError or whole values."""
    (folder / WEIGHTS).write_bytes(weights)
    (folder / "config.json").write_text(text)
    try:
        own = json.loads(text)["quantization_config"]
        assert isinstance(own, dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        return True  # no folder of ours: said by whoever opens the config
    try:
        container = Container(folder, own, stored_in(folder))
        for key, shape in container.shapes.items():
            values = container.read(key)
            assert values.shape == shape and bool(torch.isfinite(values).all()), (done, key)
    except InputError as error:
        assert str(folder) in str(error), (done, error)
        return True
    return False


def test_no_header_asks_for_memory(good: tuple[Path, dict[str, Tensor]]) -> None:
    folder = good[0]
    size = (folder / WEIGHTS).stat().st_size
    for side in (2**12, 2**20, 2**30):
        changed(
            folder,
            lambda config, side=side: [
                group["matrices"].update({key: [6, side] for key in group["matrices"]}) for group in config["groups"]
            ],
        )
        tracemalloc.start()
        with pytest.raises(InputError, match="cannot lie in"):
            opened(folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 * size
