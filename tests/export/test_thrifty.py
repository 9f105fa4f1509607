"""Results that are taken into our container afterwards: the same values in fewer bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import thrifty
from tests.export.codes import packed_model
from tests.tiny import inputs, tiny
from thrifty import api
from thrifty.base.errors import InputError, RunError
from thrifty.export import thrifty as export
from thrifty.export.container import Container
from thrifty.export.formats import export_result
from thrifty.export.shards import stored_in
from thrifty.models.shell import main_output

RESULTS: dict[str, tuple[str, list[dict[str, Any]], float]] = {
    "three bits": ("llama", [{"rtn": {"bits": 3, "group_size": 32}}], 3.5),
    "zero points": ("qwen2", [{"rtn": {"bits": 2, "group_size": 32, "symmetric": False}}], 2.56),
    "without zero": ("llama", [{"solve": {"by": "round", "into": {"zero_free": {"bits": 2, "group_size": 32}}}}], 2.5),
    "ternary": ("llama", [{"solve": {"by": "round", "into": {"ternary": {"group_size": 0}}}}], 1.9),
    "experts": ("mixtral", [{"rtn": {"bits": 4, "group_size": 32}}], 4.5),
    "bytes": ("vit", [{"rtn": {"bits": 8, "group_size": 0, "activation": {"dynamic": {}}}}], 8.3),
    "zeros": ("gpt2", [{"magnitude": {"pattern": "2:4"}}], 17.0),
}


@pytest.mark.parametrize("name", RESULTS)
@torch.inference_mode()
def test_the_same_values_in_fewer_bytes(name: str, tmp_path: Path) -> None:
    architecture, steps, bits = RESULTS[name]
    rows = inputs(architecture, 2, 24)
    out = tmp_path / "out"
    thrifty.compress(tiny(architecture, tmp_path / "model"), {"steps": steps}, rows, out=out, speed=False)
    written = api.export(out, "thrifty")
    place = Path(written["out"])
    assert place == tmp_path / "out-thrifty" and written["bits_per_weight"] == pytest.approx(bits, rel=0.06)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, place)]
    assert written["bytes"] == sizes[1] < (sizes[0] if name != "experts" else 1.05 * sizes[0])
    for folder in (out, place):
        api.export(folder, "dense", tmp_path / f"{folder.name}-plain")
    before, after = (load_file(tmp_path / f"{folder.name}-plain" / "model.safetensors") for folder in (out, place))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    certificate = json.loads((place / "certificate.json").read_text())
    assert certificate["bits_per_weight"] == written["bits_per_weight"] and certificate["bytes"]["after"] == written["bytes"]
    assert "import thrifty\n" in (place / "README.md").read_text()
    if name == "three bits":
        plain = thrifty.load(tmp_path / "out-plain", torch.float32)
        torch.testing.assert_close(main_output(thrifty.load(place, torch.float32)(**rows)), main_output(plain(**rows)))


def test_small_floats_come_over(tmp_path: Path) -> None:
    steps = [{"solve": {"by": "round", "into": {"float": {"format": "e4m3", "group_size": 0}}}}]
    thrifty.compress(tiny("llama", tmp_path / "model"), {"steps": steps}, inputs("llama", 2, 24), out=tmp_path / "out", speed=False)
    export_result(tmp_path / "out", "thrifty", tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())["quantization_config"]
    assert {(group["layout"], group["standard"]) for group in config["groups"]} == {("numbers", "fp8")}


def test_levels_are_those_that_occur(tmp_path: Path) -> None:
    codes = packed_model("llama", tmp_path / "small", lambda stem: (32, 3, True))
    export.write(tmp_path / "small", tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())["quantization_config"]
    container = Container(tmp_path / "own", config, stored_in(tmp_path / "own"))
    for stem, code in codes.items():
        assert torch.equal(container.read(f"{stem}.weight"), code.decode())
        assert container.matrices[f"{stem}.weight"].layout.levels in (7, 8)


def test_what_it_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llama", tmp_path / "model")
    with pytest.raises(InputError, match="neither codes nor matrices with zeros"):
        export_result(folder, "thrifty", tmp_path / "own")
    packed_model("llama", tmp_path / "small", lambda stem: (32, 4, True))
    with monkeypatch.context() as patch:
        patch.setattr(Container, "read", lambda self, key: torch.zeros(1))
        with pytest.raises(RunError, match="reads back from the container otherwise"):
            export_result(tmp_path / "small", "thrifty", tmp_path / "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]
    export_result(tmp_path / "small", "thrifty", tmp_path / "own")
    with pytest.raises(InputError, match="is in the container already"):
        export_result(tmp_path / "own", "thrifty", tmp_path / "again")
