"""What lies beside the weights goes into the result byte for byte; weights, hidden files and the old card do not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import thrifty
from tests.pipeline.test_failures import disk
from tests.tiny import inputs, tiny
from thrifty.base.errors import RunError
from thrifty.export.side import copy_side_files, write_config
from thrifty.models import open_model

SIDE = {
    "tokenizer.json": b'{"version": "1.0", "model": {}}',
    "tokenizer_config.json": b"{}\n",
    "tokenizer.model": bytes(range(256)),
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{}",
    "vocab.json": b"{}",
    "vocab.txt": b"a\r\nb\r\n",
    "merges.txt": "#version\n\u0120 t\n".encode(),
    "chat_template.jinja": b"{% for message in messages %}{{ message }}{% endfor %}",
    "generation_config.json": b'{"max_new_tokens": 5}',
    "preprocessor_config.json": b"{}",
    "processor_config.json": b"{}",
    "LICENSE": b"all rights\n",
    "LICENSE.txt": b"more rights\n",
    "NOTICE": b"",
    "modeling_own.py": b"raise SystemExit\n",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
}
LEFT = {
    "README.md": b"# the original\n",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model.bin": b"a pickle",
    "training.pt": b"a pickle",
    "tf_model.h5": b"weights",
    "flax_model.msgpack": b"weights",
    "model.onnx": b"weights",
    "model.gguf": b"weights",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tiny("llama", tmp_path / "model")
    for name, content in (SIDE | LEFT).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "runs").mkdir()
    (folder / "runs" / "events.txt").write_text("no side file")
    return folder


def contents(folder: Path, names: Any) -> dict[str, bytes | None]:
    return {name: (folder / name).read_bytes() if (folder / name).exists() else None for name in names}


def test_a_result_has_every_file_beside_the_weights(model: Path, tmp_path: Path) -> None:
    before = contents(model, sorted(path.name for path in model.iterdir() if path.is_file()))
    # A tokenizer and code that nothing here reads: the rows are given.
    out = tmp_path / "out"
    recipe = {"steps": [{"rtn": {"bits": 4, "group_size": 32}}]}
    thrifty.compress(model, recipe, inputs("llama", 2, 16), evaluation=inputs("llama", 2, 16, seed=1), out=out, speed=False)
    assert contents(out, SIDE) == SIDE
    assert contents(out, LEFT) == {**dict.fromkeys(LEFT), "README.md": (out / "README.md").read_bytes()}
    assert (out / "README.md").read_bytes() != LEFT["README.md"]
    written = {"model.safetensors", "config.json", "certificate.json", "report.html", "README.md"}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == SIDE.keys() | written
    assert contents(model, before) == before


def test_links_are_followed(model: Path, tmp_path: Path) -> None:
    """As in the cache of the hub, where every file is a link."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in (path for path in model.rglob("*") if path.is_file()):
        (linked / path.relative_to(model)).parent.mkdir(exist_ok=True)
        (linked / path.relative_to(model)).symlink_to(path)
    out = tmp_path / "out"
    copy_side_files(open_model(linked).side_files(), linked, out)
    assert contents(out, SIDE) == SIDE
    copied = [path for path in out.rglob("*") if path.is_file()]
    assert {str(path.relative_to(out)) for path in copied} == SIDE.keys() and not any(path.is_symlink() for path in copied)


def test_an_older_file_is_replaced_and_a_full_disk_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "vocab.txt").write_bytes(b"new" * 100)
    (tmp_path / "to" / "vocab.txt").write_bytes(b"old")
    with disk(tmp_path / "to", free=10), pytest.raises(RunError, match="disk is full"):
        copy_side_files([tmp_path / "from" / "vocab.txt"], tmp_path / "from", tmp_path / "to")
    assert contents(tmp_path / "to", os.listdir(tmp_path / "to")) == {"vocab.txt": b"old"}
    copy_side_files([tmp_path / "from" / "vocab.txt"], tmp_path / "from", tmp_path / "to")
    assert contents(tmp_path / "to", os.listdir(tmp_path / "to")) == {"vocab.txt": b"new" * 100}


@pytest.mark.parametrize("quantization", [None, {"quant_method": "compressed-tensors"}])
def test_the_config_is_the_original_with_the_quantization(quantization: dict[str, str] | None, tmp_path: Path) -> None:
    original = {"model_type": "llama", "name": "caf\u00e9", "eps": 1e-5, "layers": [1, None], "inner": {"b": 1, "a": 2}}
    write_config(tmp_path, original, quantization)
    text = (tmp_path / "config.json").read_text()
    expected = original if quantization is None else {**original, "quantization_config": quantization}
    assert json.loads(text) == expected and list(json.loads(text)) == list(expected)
    assert original.keys() == {"model_type", "name", "eps", "layers", "inner"}
