"""Plain folders made from packed ones: the same function, every file beside the weights, and nothing at all when something fails."""

from __future__ import annotations

import errno
import json
import os
import resource
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import thrifty
from tests.export.codes import change_config, packed_model
from tests.pipeline.test_failures import disk
from tests.tiny import inputs, tiny
from thrifty.base.errors import InputError, RunError
from thrifty.export import dense, shards
from thrifty.export.formats import export_result
from thrifty.export.shards import INDEX
from thrifty.models.shell import main_output

SIDE = {
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}\n",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}\n",
    "generation_config.json": b'{"max_new_tokens": 3}',
    "LICENSE": b"as you like\n",
    "merges.txt": "\u00e9 \u00e8\n".encode(),
    "README.md": b"# a card\n",
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def small_model(folder: Path) -> Path:
    """A tiny Llama whose matrices are codes, with files beside its weights."""
    packed_model("llama", folder, lambda stem: (32, 4, True))
    for name, content in SIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return small_model(tmp_path / "small")


# -- what is written ---------------------------------------------------------------------------------------------------

RESULTS = {
    "llama": [{"rtn": {"bits": 4, "group_size": 32}}],
    "qwen2": [{"rtn": {"bits": 4, "group_size": 32, "symmetric": False}}],
    "mixtral": [{"rtn": {"bits": 4, "group_size": 32}}],
    "vit": [{"rtn": {"bits": 8, "group_size": 0}}],
}


@pytest.mark.parametrize("name", RESULTS)
@torch.inference_mode()
def test_the_plain_model_computes_what_the_packed_one_does(name: str, tmp_path: Path) -> None:
    model, out = tiny(name, tmp_path / "model"), tmp_path / "out"
    rows = inputs(name, 2, 24)
    thrifty.compress(model, {"steps": RESULTS[name]}, rows, evaluation=inputs(name, 2, 24, seed=1), out=out, speed=False)
    answer = export_result(out, "dense", None)
    plain = tmp_path / "out-dense"
    assert answer == {
        "folder": str(out),
        "format": "dense",
        "out": str(plain),
        "bytes": (plain / "model.safetensors").stat().st_size,
        "tensors": len(load_file(plain / "model.safetensors")),
        "dtype": "float32",
    }
    original = load_file(model / "model.safetensors")
    written = load_file(plain / "model.safetensors")
    forms = {key: (tensor.dtype, tensor.shape) for key, tensor in written.items()}
    assert forms == {key: (tensor.dtype, tensor.shape) for key, tensor in original.items()}
    assert json.loads((plain / "config.json").read_text()) == json.loads((model / "config.json").read_text())
    architecture = getattr(transformers, json.loads((plain / "config.json").read_text())["architectures"][0])
    found = main_output(architecture.from_pretrained(plain).eval()(**rows))
    expected = main_output(architecture.from_pretrained(out, dtype=torch.float32).to(torch.float32).eval()(**rows))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, main_output(thrifty.load(plain)(**rows)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_matrices_are_rounded_once_to_the_type_of_the_model(dtype: str, tmp_path: Path) -> None:
    codes = packed_model("llama", tmp_path / "small", lambda stem: (0, 8, True))
    change_config(tmp_path / "small", dtype=dtype)
    assert dense.write(tmp_path / "small", tmp_path / "plain")["dtype"] == dtype
    written, before = load_file(tmp_path / "plain" / "model.safetensors"), load_file(tmp_path / "small" / "model.safetensors")
    for stem, code in codes.items():
        assert torch.equal(written.pop(f"{stem}.weight"), code.decode().to(getattr(torch, dtype)))
    assert written and all(torch.equal(tensor, before[key]) for key, tensor in written.items())


def test_every_file_beside_the_weights_is_copied(packed: Path, tmp_path: Path) -> None:
    before = snapshot(packed)
    dense.write(packed, tmp_path / "plain")
    found = snapshot(tmp_path / "plain")
    assert found.keys() == {*SIDE, "config.json", "model.safetensors"}
    assert {name: found[name] for name in SIDE} == SIDE
    assert snapshot(packed) == before


def test_what_says_how_large_a_result_is_is_left_behind(packed: Path, tmp_path: Path) -> None:
    for name in dense.OUTDATED:
        (packed / name).write_text("4 bit")
    dense.write(packed, tmp_path / "plain")
    assert not set(dense.OUTDATED) & snapshot(tmp_path / "plain").keys()


def test_a_model_that_is_plain_already_is_copied(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    dense.write(folder, tmp_path / "plain")
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "plain"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def in_two_files(packed: Path) -> Path:
    """The same, the parts of every matrix spread over two files."""
    tensors = load_file(packed / "model.safetensors")
    keys = sorted(tensors)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    files = dict(zip(names, (keys[::2], keys[1::2]), strict=True))
    for file, held in files.items():
        save_file({key: tensors[key] for key in held}, packed / file, metadata={"format": "pt"})
    (packed / "model.safetensors").unlink()
    (packed / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {key: file for file, held in files.items() for key in held}}))
    return packed


def test_parts_of_a_matrix_may_lie_in_several_files(in_two_files: Path, tmp_path: Path) -> None:
    codes = packed_model("llama", tmp_path / "again", lambda stem: (32, 4, True))
    dense.write(in_two_files, tmp_path / "plain")
    assert not (tmp_path / "plain" / INDEX).exists()
    written = load_file(tmp_path / "plain" / "model.safetensors")
    assert all(torch.equal(written[f"{stem}.weight"], code.decode()) for stem, code in codes.items())
    assert not [key for key in written if "packed" in key or "scale" in key or "shape" in key]


@torch.inference_mode()
def test_shards(in_two_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.write_shards, "__defaults__", (50_000,))
    dense.write(in_two_files, tmp_path / "plain")
    files = sorted((tmp_path / "plain").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "plain" / INDEX).read_text())
    content: dict[str, Tensor] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in content.values())
    assert index["weight_map"].keys() == content.keys()
    rows = inputs("llama", 2, 12)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()(**rows).logits
    torch.testing.assert_close(found, thrifty.load(in_two_files, torch.float32)(**rows).logits, rtol=1e-5, atol=1e-5)


def test_one_matrix_at_a_time_is_in_memory(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most, read = [0], dense.read_packed

    def counting(*words: object) -> object:
        found = read(*words)
        alive.add(found.tensors["codes"])
        most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(dense, "read_packed", counting)
    dense.write(packed, tmp_path / "plain")
    assert 0 < most[0] <= 2


# -- what is refused, and what fails -----------------------------------------------------------------------------------


def test_other_formats_are_refused(packed: Path, tmp_path: Path) -> None:
    change_config(packed, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="gptq"):
        dense.write(packed, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_part_that_is_missing(packed: Path, tmp_path: Path) -> None:
    tensors = load_file(packed / "model.safetensors")
    name = next(key for key in tensors if key.endswith("weight_scale"))
    del tensors[name]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(InputError, match=name):
        dense.write(packed, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("small", "dence", None), "did you mean 'dense'"),
        (("absent", "dense", None), "not a model folder"),
        (("small", "dense", "small"), "exists"),
        (("small", "dense", "no/such/place"), "is not a folder"),
    ],
)
def test_requests_that_are_refused(words: tuple[str, str, str | None], message: str, packed: Path, tmp_path: Path) -> None:
    folder, to, out = words
    with pytest.raises(InputError, match=message):
        export_result(tmp_path / folder, to, None if out is None else tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_folder_of_somebody_else_is_left_alone(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.tmp").mkdir()
    (tmp_path / "plain.tmp" / "thesis.txt").write_text("mine")
    dense.write(packed, tmp_path / "plain")
    assert (tmp_path / "plain.tmp" / "thesis.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def needed(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes that an export writes."""
    base = tmp_path_factory.mktemp("needed")
    folder = small_model(base / "small")
    with disk(base) as counted:
        dense.write(folder, base / "plain")
    assert counted.used > (base / "plain" / "model.safetensors").stat().st_size
    return counted.used


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_full_disk_leaves_nothing(share: float, needed: int, packed: Path, tmp_path: Path) -> None:
    """The last share fails at the files beside the weights."""
    before = snapshot(tmp_path)
    with disk(tmp_path, free=int(share * needed)), pytest.raises(RunError, match="disk is full"):
        export_result(packed, "dense", tmp_path / "plain")
    assert snapshot(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["small"]
    export_result(packed, "dense", tmp_path / "plain")
    assert (tmp_path / "plain" / "LICENSE").read_bytes() == SIDE["LICENSE"]


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: the system itself refuses, whichever library writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [10, 1_000, 100_000])
def test_files_may_not_grow(limit: int, packed: Path, tmp_path: Path) -> None:
    with largest_file(limit), pytest.raises(RunError, match="could not be written"):
        dense.write(packed, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize(
    ("fault", "message"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "No permission"), (errno.EIO, "could not be written")]
)
@pytest.mark.parametrize("step", ["mkdir", "rename"])
def test_the_folder_cannot_be_made_or_moved(
    step: str, fault: int, message: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act: Callable[..., None] = getattr(os, step)

    def faulty(path: object, *words: object, **options: object) -> None:
        if "plain" in str(path):
            raise OSError(fault, os.strerror(fault), str(path))
        act(path, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, faulty)
        with pytest.raises(RunError, match=f"{message}.*plain|plain.*{message}"):
            dense.write(packed, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_an_interruption_leaves_nothing(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dense, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dense.write(packed, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_tensor_that_reads_back_otherwise(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = dense.check_shards

    def damaged(folder: Path, digests: dict[str, str]) -> None:
        file = next(folder.glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        check(folder, digests)

    monkeypatch.setattr(dense, "check_shards", damaged)
    with pytest.raises(RunError, match="reads back otherwise"):
        dense.write(packed, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
