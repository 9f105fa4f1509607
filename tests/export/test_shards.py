"""Files made of pieces: read by the safetensors library itself, in shards of the size asked for, and what a broken disk does to them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
import tempfile
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.pipeline.test_failures import disk
from tests.tiny import build, inputs, tiny
from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.export import shards
from thrifty.export.shards import INDEX, Made, Piece, check_shards, pieces_of, stored_in, write_shards

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]


def random(seed: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (math.prod(shape) * dtype.itemsize,), generator=generator)
    return content.to(torch.uint8).view(dtype).reshape(shape)


def source(path: Path, tensors: dict[str, Tensor]) -> list[Piece]:
    save_file(tensors, path)
    return pieces_of(path)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit: random bytes are NaN here and there."""
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype
        and first[key].shape == second[key].shape
        and first[key].reshape(-1).view(torch.uint8).equal(second[key].reshape(-1).view(torch.uint8))
        for key in first
    )


def bytes_in(file: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(file).values())


# -- content -----------------------------------------------------------------------------------------------------------

tensor_shapes = st.one_of(st.just(()), st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple))


@given(
    forms=st.lists(st.tuples(st.sampled_from(TYPES), tensor_shapes, st.booleans()), min_size=1, max_size=8),
    limit=st.integers(1, 200),
)
def test_any_pieces_in_shards_of_any_size(forms: list[tuple[torch.dtype, tuple[int, ...], bool]], limit: int) -> None:
    tensors = {f"layer.{number}": random(number, dtype, shape) for number, (dtype, shape, _) in enumerate(forms)}
    made = {f"layer.{number}" for number, form in enumerate(forms) if form[2]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {piece.key: piece for piece in source(folder / "source", tensors)}
        assert all(found[key].read().shape == tensor.shape for key, tensor in tensors.items())
        pieces: list[Piece | Made] = [
            Made(key, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor) if key in made else found[key]
            for key, tensor in tensors.items()
        ]
        (folder / "out").mkdir()
        digests = write_shards(folder / "out", pieces, limit)
        check_shards(folder / "out", digests)
        files = sorted((folder / "out").glob("*.safetensors"))
        content: dict[str, Tensor] = {}
        for file in files:
            held = load_file(file)
            assert not held.keys() & content.keys()
            # No larger than asked, but for a tensor that is larger by itself.
            assert bytes_in(file) <= limit or sum(tensor.nbytes > 0 for tensor in held.values()) == 1
            content |= held
            _check_alignment(file)
        assert same(content, tensors)
        assert [file.name for file in files] == (
            ["model.safetensors"]
            if len(files) == 1
            else [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        )
        if len(files) == 1:
            assert not (folder / "out" / INDEX).exists()
        else:
            index = json.loads((folder / "out" / INDEX).read_text())
            assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
            assert index["weight_map"] == {key: file.name for file in files for key in load_file(file)}


def _check_alignment(file: Path) -> None:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    for piece in pieces_of(file):
        assert piece.start % piece.dtype.itemsize == 0


def test_shards_keep_the_order_and_are_as_few_as_it_allows(tmp_path: Path) -> None:
    sizes = [30, 70, 1, 250, 40, 60, 10]
    tensors = {f"{number}": random(number, torch.uint8, (size,)) for number, size in enumerate(sizes)}
    source(tmp_path / "source", tensors)
    pieces = sorted(pieces_of(tmp_path / "source"), key=lambda piece: piece.key)
    out = tmp_path / "out"
    out.mkdir()
    write_shards(out, pieces, 100)
    held = [sorted(load_file(file)) for file in sorted(out.glob("*.safetensors"))]
    assert held == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6"]]


def test_shards_are_a_model_for_transformers(tmp_path: Path) -> None:
    model, out = tiny("llama", tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    write_shards(out, pieces_of(model / "model.safetensors"), 60_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    (out / "config.json").write_bytes((model / "config.json").read_bytes())
    rows = inputs("llama", 2, 12)
    with torch.inference_mode():
        found = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()(**rows).logits
        assert torch.equal(found, build("llama")(**rows).logits)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    pieces = source(tmp_path / "source", {f"{number}": random(number, torch.float32, (10,)) for number in range(6)})
    seen: list[tuple[float, float]] = []
    out = tmp_path / "out"
    out.mkdir()
    with events.listening(lambda event: seen.append((event.done, event.total)) if event.kind == "advance" else None):
        write_shards(out, pieces, 100)
    assert seen == [(80, 240), (160, 240), (240, 240)]


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [1 << 30, 1 << 20])
def test_pieces_pass_through_a_small_buffer(whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MB of tensors, in one shard or in many, through a buffer of 64 kB."""
    pieces = source(tmp_path / "source", {f"{number}": random(number, torch.float32, (1 << 20,)) for number in range(4)})
    monkeypatch.setattr(shards, "BUFFER", 1 << 16)
    out = tmp_path / "out"
    out.mkdir()
    tracemalloc.start()
    try:
        check_shards(out, write_shards(out, pieces, whole))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert sum(bytes_in(file) for file in out.glob("*.safetensors")) == 1 << 24


def test_made_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = [0]

    def make() -> Tensor:
        made = torch.ones(100)
        alive.add(made)
        most[0] = max(most[0], len(alive))
        return made

    write_shards(tmp_path, [Made(str(number), torch.float32, (100,), make) for number in range(6)])
    assert most[0] <= 2
    assert len(load_file(tmp_path / "model.safetensors")) == 6


# -- what a broken disk does -------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with three shards, and the digests of its tensors."""
    pieces = source(tmp_path / "source", {f"block.{number}": random(number, torch.float32, (4, 5)) for number in range(6)})
    out = tmp_path / "out"
    out.mkdir()
    digests = write_shards(out, pieces, 160)
    assert len(list(out.glob("*.safetensors"))) == 3
    check_shards(out, digests)
    return out, digests


def test_digests_are_those_of_type_shape_and_bytes(written: tuple[Path, dict[str, str]]) -> None:
    out, digests = written
    tensors = {key: tensor for file in out.glob("*.safetensors") for key, tensor in load_file(file).items()}
    expected = {key: hashlib.sha256(b"F32 [4, 5] " + tensor.numpy().tobytes()).hexdigest() for key, tensor in tensors.items()}
    assert digests == expected


def test_every_flipped_byte_of_every_tensor_is_found(written: tuple[Path, dict[str, str]]) -> None:
    out, digests = written
    for file in sorted(out.glob("*.safetensors")):
        whole = file.read_bytes()
        for piece in pieces_of(file):
            for place in (piece.start, piece.start + piece.nbytes // 2, piece.start + piece.nbytes - 1):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                with pytest.raises(RunError, match=rf"{piece.key} reads back otherwise"):
                    check_shards(out, digests)
        file.write_bytes(whole)
    check_shards(out, digests)


def in_header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """The content of a file with another header."""

    def damage(whole: bytes) -> bytes:
        (length,) = struct.unpack("<Q", whole[:8])
        header = json.loads(whole[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    return damage


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "ends early": lambda whole: whole[:-3],
    "empty": lambda whole: b"",
    "ends in its length": lambda whole: whole[:5],
    "ends in its header": lambda whole: whole[:40],
    "header is noise": lambda whole: whole[:8] + bytes(reversed(whole[8:])),
    "header is longer than the file": lambda whole: struct.pack("<Q", 1 << 60) + whole[8:],
    "another shape": in_header(lambda header: header["block.0"].update(shape=[5, 4])),
    "another type": in_header(lambda header: header["block.0"].update(dtype="I32")),
    "a shape of another size": in_header(lambda header: header["block.0"].update(shape=[5, 5])),
    "an unknown type": in_header(lambda header: header["block.0"].update(dtype="X1")),
    "a key is gone": in_header(lambda header: header.pop("block.0") and None),
    "keys changed places": in_header(lambda header: header.update({"block.0": header["block.1"], "block.1": header["block.0"]})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_found(damage: str, written: tuple[Path, dict[str, str]]) -> None:
    out, digests = written
    file = next(file for file in out.glob("*.safetensors") if "block.0" in load_file(file))
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(RunError):
        check_shards(out, digests)


def test_a_shard_that_is_gone_is_found(written: tuple[Path, dict[str, str]]) -> None:
    out, digests = written
    sorted(out.glob("*.safetensors"))[1].unlink()
    with pytest.raises(RunError, match="reads back otherwise"):
        check_shards(out, digests)


def test_a_source_that_ends_early(tmp_path: Path) -> None:
    pieces = source(tmp_path / "source", {"a": random(0, torch.float32, (10,)), "b": random(1, torch.float32, (10,))})
    os.truncate(tmp_path / "source", (tmp_path / "source").stat().st_size - 1)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RunError, match="ends before the end of b"):
        write_shards(out, pieces)
    assert not list(out.iterdir())


def test_a_piece_whose_shape_needs_other_bytes(tmp_path: Path) -> None:
    (piece,) = source(tmp_path / "source", {"a": random(0, torch.float32, (10,))})
    with pytest.raises(RunError, match="a has 40 bytes"):
        write_shards(tmp_path, [Piece("a", torch.float32, (11,), piece.file, piece.start, piece.nbytes)])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("free", [0, 50, 700, 1200])
def test_a_full_disk_leaves_whole_shards_or_none(free: int, tmp_path: Path) -> None:
    tensors = {f"{number}": random(number, torch.float32, (50,)) for number in range(6)}
    pieces = source(tmp_path / "source", tensors)
    out = tmp_path / "out"
    out.mkdir()
    with disk(out, free=free), pytest.raises(RunError, match="disk is full"):
        write_shards(out, pieces, 400)
    left = list(out.iterdir())
    assert len(left) < 3 and all(path.suffix == ".safetensors" and not path.name.startswith(".") for path in left)
    for path in left:
        assert len(load_file(path)) == 2
    check_shards(out, write_shards(out, pieces, 400))
    assert same({key: tensor for file in out.glob("*.safetensors") for key, tensor in load_file(file).items()}, tensors)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = source(tmp_path / "source", {"a": random(0, torch.float32, (10,))})
    out = tmp_path / "out"

    def refuse(*words: Any, **options: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="No permission"):
        write_shards(out, pieces)
    assert not list(out.iterdir())


# -- reading a folder --------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {f"{number}": random(number, dtype, (3, 4)) for number, dtype in enumerate(TYPES)}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    for number, keys in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        save_file({key: tensors[key] for key in keys}, tmp_path / f"{number}.safetensors", metadata={"who": "cares"})
    found = stored_in(tmp_path)
    assert same({key: piece.read() for key, piece in found.items()}, tensors)
    for file in tmp_path.iterdir():
        with safe_open(file, "pt") as reader:
            assert {piece.key for piece in found.values() if piece.file == file} == set(reader.keys())


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": 12}', b"\x7fELF" * 20])
def test_a_file_that_is_not_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors has (no|a broken) header"):
        stored_in(tmp_path)
