"""What an earlier attempt left behind: taken where it is whole, done again where it is not, never trusted blindly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import thrifty
from tests.tiny import inputs, tiny
from thrifty.base import events
from thrifty.pipeline import folder as folders
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.streams import Streams


class Stopped(Exception):
    """Stands for a kill."""


def run(model: Path, out: Path, name: str = "llama") -> list[str]:
    """Compress; returns the notes."""
    said: list[str] = []
    rows = {"calibration": inputs(name, 6, 16), "evaluation": inputs(name, 2, 16, seed=1)}
    with events.listening(lambda event: said.append(event.message) if event.kind == "note" else None):
        thrifty.compress(model, "gptq: {bits: 4, group_size: 32}", out=out, speed=False, **rows)
    return said


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The blocks that are solved, in order."""
    found: list[str] = []
    real = BlockRun.compress

    def compress(self: BlockRun, rows: object) -> object:
        found.append(self.block.path)
        return real(self, rows)

    monkeypatch.setattr(BlockRun, "compress", compress)
    return found


@pytest.mark.parametrize("name", ["llama", "clip", "mixtral"])
@pytest.mark.parametrize(("module", "method"), [(Streams, "save"), (folders, "write_json"), (folders.RunFolder, "finish")])
def test_stopped_at_every_write_no_finished_block_is_solved_again(
    name: str, module: object, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str]
) -> None:
    model = tiny(name, tmp_path / "model")
    run(model, tmp_path / "whole", name)
    blocks, calls = list(solved), 0
    real = getattr(module, method)

    def stopping(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        done = real(*arguments, **named)
        if calls in (2, 4):
            raise Stopped  # right after the write
        return done

    monkeypatch.setattr(module, method, stopping)
    del solved[:]
    for _ in range(3):
        try:
            run(model, tmp_path / "out", name)
            break
        except Stopped:
            finished = {path.stem for path in (tmp_path / "out" / ".run" / "blocks").glob("*.json")}
            assert len(solved) - len(finished) <= 2
    # what was stopped between the rows and the report is solved once more, and nothing that has a report
    assert set(solved) == set(blocks) and len(solved) <= len(blocks) + 2
    if method == "finish":
        assert solved == blocks
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_stopped_while_the_working_files_go_the_result_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str]) -> None:
    model, out = tiny("llama", tmp_path / "model"), tmp_path / "out"
    real = folders.shutil.rmtree

    def stopping(path: Path, *arguments: object, **named: object) -> None:
        if path == out / ".run":
            real(path / "blocks")
            raise Stopped
        real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "rmtree", stopping)
        with pytest.raises(Stopped):
            run(model, out)
    assert (out / ".run").exists()
    written = weights(out)
    del solved[:]
    assert any("already holds this result" in note for note in run(model, out))
    assert not solved and weights(out) == written and not (out / ".run").exists()


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("which", ["blocks/*.safetensors", "blocks/*.json", "streams/*.safetensors"])
def test_damaged_working_files_are_made_again(
    which: str, damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", tmp_path / "model")
    run(model, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("thrifty.pipeline.run.assemble", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            run(model, tmp_path / "out")
    file = sorted((tmp_path / "out" / ".run").glob(which))[0]
    damage(file)
    said = run(model, tmp_path / "out")
    assert not any("2 of 2 blocks" in note for note in said)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
