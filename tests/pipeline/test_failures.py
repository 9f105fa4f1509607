"""Faults on the way: a full disk, no permission, a source that breaks. One sentence, no half result, the same bytes once it is mended."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny
from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.events import Event
from thrifty.cli.main import main
from thrifty.pipeline import run as pipeline
from thrifty.pipeline.walk import Walk

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:;()=+-*/_[]\"'#"
WEIGHTS = "model.safetensors"
CERTIFICATE = "certificate.json"
GATE = ["--max-perplexity-increase", "0.001%"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that has a tokenizer, and a text."""
    base = tmp_path_factory.mktemp("home")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tiny("llama", base / "model"))
    (base / "text.txt").write_text("".join(f"value_{number} = compute({number}, 'x')\n" for number in range(80)))
    return base


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Path:
    """The result that every mended run must come to."""
    assert main(command(home, home / "undisturbed")) == 0
    return home / "undisturbed"


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the blocks that were solved, as they are written."""
    paths: list[str] = []
    write = pipeline.write_block

    def counting(path: Path, source: Any, view: Any) -> Any:
        paths.append(view.block.path)
        return write(path, source, view)

    monkeypatch.setattr(pipeline, "write_block", counting)
    return paths


def command(home: Path, out: Path, *words: str, step: str = "gptq: {bits: 4, group_size: 32}", model: Path | None = None) -> list[str]:
    """A `compress` that takes a tenth of a second."""
    recipe = f"evaluation: {{text: '{home / 'text.txt'}', samples: 4, tokens: 32}}\nsteps:\n  - {step}\n"
    data = ["--calibration", str(home / "text.txt"), "--samples", "4", "--tokens", "32"]
    return ["compress", str(model or home / "model"), "--recipe", recipe, *data, "--out", str(out), *words]


def digests(folder: Path) -> dict[str, str]:
    """Digests of every file under a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights_of(out: Path) -> dict[str, str]:
    """Digests of what other runtimes read. Certificate, report and card hold times and paths."""
    kept = (".safetensors", ".json")
    return {name: digest for name, digest in digests(out).items() if name.endswith(kept) and name != CERTIFICATE}


def sentence(printed: Any) -> str:
    """The one sentence on standard error."""
    assert "Traceback" not in printed.err
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, printed.err
    return errors[0].removeprefix("error: ")


def nothing_half_written(out: Path) -> None:
    assert not (out / CERTIFICATE).exists()
    assert not (out / WEIGHTS).exists()
    assert not list(out.rglob("*.tmp")), "a temporary file was left behind"


# -- a disk that is full -----------------------------------------------------------------------------------------------


class Disk:
    """A disk with `free` bytes left: what Python and safetensors write below `folder` is counted, and refused when it is full."""

    def __init__(self, folder: Path, free: float) -> None:
        self.folder = str(folder)
        self.free = free
        self.used = 0
        self._open, self._serialize = io.open, safetensors.torch.serialize_file

    def take(self, count: int) -> bool:
        """Whether so many more bytes fit."""
        self.used += count
        return self.used <= self.free

    def open(self, file: Any, mode: str = "r", *words: Any, **options: Any) -> Any:
        stream = self._open(file, mode, *words, **options)
        if "w" not in mode or not str(file).startswith(self.folder):
            return stream
        write = stream.write

        def counted(content: bytes) -> int:
            if not self.take(len(content)):
                write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            return int(write(content))

        return _Stream(stream, counted)

    def serialize(self, tensors: dict[str, Any], filename: Any, *words: Any, **options: Any) -> None:
        """As safetensors says it: with an error of its own."""
        self._serialize(tensors, filename, *words, **options)
        if not self.take(Path(filename).stat().st_size):
            os.truncate(filename, 100)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


class _Stream:
    """An open file whose `write` is another."""

    def __init__(self, stream: Any, write: Callable[[bytes], int]) -> None:
        self.stream, self.write = stream, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()


@contextmanager
def disk(folder: Path, free: float = float("inf")) -> Iterator[Disk]:
    found = Disk(folder, free)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", found.open)
        patch.setattr(safetensors.torch, "serialize_file", found.serialize)
        yield found


@pytest.fixture(scope="module")
def needed(home: Path, undisturbed: Path) -> int:
    """Bytes that an undisturbed run writes."""
    with disk(home / "counted") as counted:
        assert main(command(home, home / "counted")) == 0
    assert weights_of(home / "counted") == weights_of(undisturbed)
    assert counted.used > (undisturbed / WEIGHTS).stat().st_size
    return counted.used


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999])
def test_full_disk(share: float, needed: int, home: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    before = digests(home / "model")
    with disk(tmp_path, free=int(share * needed)):
        assert main(command(home, out)) == 1
    said = sentence(capsys.readouterr())
    assert "disk is full" in said and str(out) in said and "run the same command again" in said
    nothing_half_written(out)
    assert main(command(home, out)) == 0
    assert weights_of(out) == weights_of(undisturbed)
    assert digests(home / "model") == before


@pytest.mark.parametrize("limit", [100, 1_000, 20_000, 40_000, 60_000, 80_000])
def test_files_may_not_grow(limit: int, home: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit that the system itself enforces, on every file and every library that writes."""
    out = tmp_path / "out"
    assert (undisturbed / WEIGHTS).stat().st_size > 80_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        code = main(command(home, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = sentence(capsys.readouterr())
    assert code == 1
    assert "could not be written" in said and str(out) in said
    nothing_half_written(out)
    assert main(command(home, out)) == 0
    assert weights_of(out) == weights_of(undisturbed)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 8, 13, 16, 19, 20, 23])
def test_a_rename_fails(
    number: int, home: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last files move from the working folder into place one by one; a certificate stands only beside all of them."""
    out, calls, replace = tmp_path / "out", [0], os.replace

    def faulty(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", faulty)
        assert main(command(home, out)) == 1
    said = sentence(capsys.readouterr())
    assert "disk is full" in said and str(out) in said
    assert not (out / CERTIFICATE).exists()
    assert not list(out.rglob("*.tmp"))
    assert main(command(home, out)) == 0
    assert weights_of(out) == weights_of(undisturbed)
    assert not (out / ".run").exists()


# -- no permission -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
def test_read_only_parent(
    fault: int, home: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, mkdir = tmp_path / "locked", os.mkdir
    parent.mkdir()

    def faulty(path: Any, *words: Any, **options: Any) -> None:
        if str(path).startswith(str(parent)):
            raise OSError(fault, os.strerror(fault), str(path))
        mkdir(path, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", faulty)
        assert main(command(home, parent / "out")) in (1, 2)
    said = sentence(capsys.readouterr())
    assert "ermission" in said and str(parent / "out") in said and "--out" in said
    assert not list(parent.iterdir())
    assert main(command(home, parent / "out")) == 0
    assert weights_of(parent / "out") == weights_of(undisturbed)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_parent_as_the_system_has_it(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o500)
    assert main(command(home, parent / "out")) in (1, 2)
    assert "ermission" in sentence(capsys.readouterr())
    assert not list(parent.iterdir())


# -- a source that breaks ----------------------------------------------------------------------------------------------


@contextmanager
def at_block(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something once, when `number` blocks are finished."""
    done: list[int] = []

    def hear(event: Event) -> None:
        if event.kind == "advance" and event.task == "blocks" and event.done == number and not done:
            done.append(number)
            act()

    with events.listening(hear):
        yield
    assert done


def test_truncated_source(home: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(home / "model", model)
    whole = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    before = digests(model)
    assert main(command(home, out, model=model)) == 2
    said = sentence(capsys.readouterr())
    assert WEIGHTS in said and "again" in said
    assert not out.exists() and digests(model) == before
    (model / WEIGHTS).write_bytes(whole)
    assert main(command(home, out, model=model)) == 0
    assert weights_of(out) == weights_of(undisturbed)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_source_is_truncated_on_the_way(
    blocks: int, home: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(home / "model", model)
    whole = (model / WEIGHTS).read_bytes()
    with at_block(blocks, lambda: (model / WEIGHTS).write_bytes(whole[:5_000]) and None):
        assert main(command(home, out, model=model)) in (1, 2)
    said = sentence(capsys.readouterr())
    assert WEIGHTS in said and "again" in said
    nothing_half_written(out)
    (model / WEIGHTS).write_bytes(whole)
    assert main(command(home, out, model=model)) == 0
    assert weights_of(out) == weights_of(undisturbed)


@pytest.mark.parametrize("blocks", [0, 1])
def test_source_is_changed_on_the_way(
    blocks: int, home: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A certificate would name the digest of weights that were not the ones compressed."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(home / "model", model)
    whole = (model / WEIGHTS).read_bytes()

    def change() -> None:
        tensors = load_file(model / WEIGHTS)
        tensors["model.layers.1.mlp.up_proj.weight"] *= 2
        save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})

    with at_block(blocks, change):
        assert main(command(home, out, model=model)) in (1, 2)
    said = sentence(capsys.readouterr())
    assert WEIGHTS in said and "changed" in said
    nothing_half_written(out)
    (model / WEIGHTS).write_bytes(whole)
    assert main(command(home, out, model=model)) == 0
    assert weights_of(out) == weights_of(undisturbed)


def test_the_source_stays_as_it_is(home: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(home / "model", model)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in model.iterdir()}
    assert main(command(home, tmp_path / "out", model=model)) == 0
    assert main(command(home, tmp_path / "awq", model=model, step="awq: {}\n  - gptq: {bits: 3}")) == 0
    assert main(command(home, tmp_path / "bad", model=model, step="gptq: {bits: 9}")) == 2
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in model.iterdir()} == before


# -- resumed, replaced, refused ----------------------------------------------------------------------------------------


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_unfinished_run_is_resumed(
    home: Path, undisturbed: Path, tmp_path: Path, solved: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with at_block(1, interrupt):
        assert main(command(home, out)) == 130
    nothing_half_written(out)
    assert solved == ["model.layers.0"]
    assert "finished work is kept" in capsys.readouterr().err
    assert main(command(home, out)) == 0
    assert solved == ["model.layers.0", "model.layers.1"]
    assert "1 of 2 blocks were already finished" in capsys.readouterr().err
    assert weights_of(out) == weights_of(undisturbed)


def test_a_request_that_shows_to_be_bad_before_a_block_is_finished_leaves_nothing(
    home: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("such a block cannot be taken apart; skip it")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Walk, "_enter", refuse)
        assert main(command(home, out)) == 2
        assert not out.exists()
        shutil.copytree(undisturbed, out)
        assert main(command(home, out, "--force")) == 2
        assert digests(out) == digests(undisturbed)
        shutil.rmtree(out)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "score", refuse)
        capsys.readouterr()
        assert main(command(home, out)) == 1
        assert sentence(capsys.readouterr()) == "such a block cannot be taken apart; skip it"
    assert main(command(home, out)) == 0
    assert "2 of 2 blocks were already finished" in capsys.readouterr().err
    assert weights_of(out) == weights_of(undisturbed)


def test_a_run_stopped_after_the_last_block_is_resumed(home: Path, undisturbed: Path, tmp_path: Path, solved: list[str]) -> None:
    out = tmp_path / "out"
    with at_block(2, interrupt):
        assert main(command(home, out)) == 130
    assert main(command(home, out)) == 0
    assert len(solved) == 2
    assert weights_of(out) == weights_of(undisturbed)


def test_a_finished_run_is_returned(home: Path, tmp_path: Path, solved: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(command(home, out, "--json")) == 0
    first, before = capsys.readouterr().out, digests(out)
    assert main(command(home, out, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(first)
    assert len(solved) == 2 and digests(out) == before


def test_an_unfinished_run_is_not_taken_for_another(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with at_block(1, interrupt):
        assert main(command(home, out)) == 130
    capsys.readouterr()
    before = digests(out)
    assert main(command(home, out, step="gptq: {bits: 3}")) == 2
    assert "another request" in sentence(capsys.readouterr())
    assert digests(out) == before


def test_force_replaces(home: Path, undisturbed: Path, tmp_path: Path, solved: list[str]) -> None:
    out = tmp_path / "out"
    assert main(command(home, out, step="rtn: {bits: 3}")) == 0
    (out / "notes.txt").write_text("of the old result")
    assert main(command(home, out)) == 2
    assert main(command(home, out, "--force")) == 0
    assert weights_of(out) == weights_of(undisturbed)
    assert not (out / "notes.txt").exists() and not (out / ".run").exists()
    assert len(solved) == 4
    assert main(command(home, out, "--force")) == 0
    assert len(solved) == 6
    assert weights_of(out) == weights_of(undisturbed)


def test_force_keeps_the_old_result_until_the_new_one_is_whole(home: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(home, out, step="rtn: {bits: 3}")) == 0
    old = weights_of(out)
    with at_block(1, interrupt):
        assert main(command(home, out, "--force")) == 130
    kept = {name: digest for name, digest in weights_of(out).items() if not name.startswith(".run/")}
    assert kept == old and (out / "certificate.json").exists()
    assert main(command(home, out)) == 0
    assert weights_of(out) == weights_of(undisturbed)
    assert main([*command(home, out, "--force", *GATE, step="rtn: {bits: 2}")]) == 3
    assert weights_of(out) == weights_of(undisturbed)
    assert weights_of(tmp_path / "out.rejected") not in (old, weights_of(undisturbed))


def test_force_keeps_the_old_result_when_the_request_is_bad(home: Path, undisturbed: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(undisturbed, out)
    shutil.copytree(home / "model", model)
    tensors = load_file(model / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    before = digests(out)
    assert main(command(home, out, "--force", model=model)) == 2
    assert main(command(home, out, "--force", step="gptq: {bits: 9}")) == 2
    assert digests(out) == before


def test_the_gate(home: Path, tmp_path: Path, solved: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, rejected = tmp_path / "out", tmp_path / "out.rejected"
    words = command(home, out, *GATE, "--json", step="rtn: {bits: 2}")
    assert main(words) == 3
    printed = capsys.readouterr()
    said = sentence(printed)
    assert "perplexity rose by" in said and "0.001 %" in said and str(rejected) in said
    answer = json.loads(printed.out)
    assert answer["exit_code"] == 3 and answer["error"] == said
    assert not out.exists()
    assert json.loads((rejected / CERTIFICATE).read_text())["gate"]["passed"] is False
    before = digests(rejected)
    assert WEIGHTS in before and not any(name.startswith(".run") for name in before)

    assert main(words) == 3
    assert sentence(capsys.readouterr()) == said
    assert len(solved) == 2 and digests(rejected) == before and not out.exists()

    ungated = command(home, out, step="rtn: {bits: 2}")
    assert main(ungated) == 0
    assert len(solved) == 2 and not rejected.exists()
    assert {name: digest for name, digest in before.items() if name in weights_of(out)} == weights_of(out)
    assert json.loads((out / CERTIFICATE).read_text())["gate"] is None


def test_another_gate_judges_the_same_result(home: Path, tmp_path: Path, solved: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is asked of a result is no part of how it is made: it says and lies where the newest gate wants it."""
    out, rejected = tmp_path / "out", tmp_path / "out.rejected"

    def run(limit: str) -> tuple[int, dict[str, Any]]:
        code = main(command(home, out, "--max-perplexity-increase", limit, step="rtn: {bits: 2}"))
        place = rejected if code == 3 else out
        assert not (out if code == 3 else rejected).exists() and not (place / ".run").exists()
        assert (sorted(path.name for path in place.iterdir())) == files
        certificate = json.loads((place / CERTIFICATE).read_text())
        assert certificate["request"]["max_perplexity_increase"] == limit and certificate["gate"]["passed"] is (code == 0)
        assert certificate["gate"]["reason"] in (place / "report.html").read_text()
        return code, certificate

    assert main(command(home, out, *GATE, step="rtn: {bits: 2}")) == 3
    files, bytes_ = sorted(path.name for path in rejected.iterdir()), weights_of(rejected)
    assert [run(limit)[0] for limit in ("0.002%", "900%", "899%", "0.001%", "900%")] == [3, 0, 0, 3, 0]
    assert len(solved) == 2 and weights_of(out) == bytes_
    capsys.readouterr()

    assert main(["repeat", str(out), "--out", str(tmp_path / "again")]) == 0
    assert weights_of(tmp_path / "again") == bytes_


def test_another_gate_goes_on_with_the_finished_blocks(home: Path, undisturbed: Path, tmp_path: Path, solved: list[str]) -> None:
    out = tmp_path / "out"
    with at_block(1, interrupt):
        assert main(command(home, out, *GATE)) == 130
    assert len(solved) == 1
    assert main(command(home, out, "--max-perplexity-increase", "900%")) == 0
    assert len(solved) == 2 and weights_of(out) == weights_of(undisturbed)


@pytest.mark.parametrize("passes", [True, False])
def test_another_verdict_replaces_no_other_result(
    passes: bool, home: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """out, rejected: what is judged again, and where it would go the result of another request."""
    out, rejected = tmp_path / "out", tmp_path / "out.rejected"
    assert main(command(home, out, *(GATE if passes else ()), step="rtn: {bits: 2}")) == (3 if passes else 0)
    shutil.copytree(undisturbed, out if passes else rejected)
    before = digests(out), digests(rejected)
    capsys.readouterr()
    assert main(command(home, out, *(() if passes else GATE), step="rtn: {bits: 2}")) == 2
    said = sentence(capsys.readouterr())
    assert f"{out if passes else rejected} holds " in said and "result of another request" in said
    assert (digests(out), digests(rejected)) == before


def test_a_result_on_its_way_to_another_place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str]) -> None:
    """Stopped at any moment of that, the same command ends with the same bytes, and solves nothing again."""
    out, rejected = tmp_path / "out", tmp_path / "out.rejected"
    assert main(command(home, out, *GATE, step="rtn: {bits: 2}")) == 3
    bytes_, move = weights_of(rejected), os.replace
    for last in range(0, 24, 4):
        done: list[Any] = []

        def stopping(start: Any, end: Any, last: int = last, done: list[Any] = done) -> None:
            done.append(end)
            if len(done) > last:
                raise KeyboardInterrupt
            move(start, end)

        limit = "900%" if rejected.exists() else "0.001%"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopping)
            main(command(home, out, "--max-perplexity-increase", limit, step="rtn: {bits: 2}"))
        assert main(command(home, out, "--max-perplexity-increase", limit, step="rtn: {bits: 2}")) == (0 if limit == "900%" else 3)
        assert weights_of(out if limit == "900%" else rejected) == bytes_
    assert len(solved) == 2


def test_a_rejected_result_whose_place_is_a_link(home: Path, tmp_path: Path, solved: list[str]) -> None:
    """The link stays where it was; the result goes beside it, and comes back."""
    (tmp_path / "disk").mkdir()
    out, rejected = tmp_path / "out", tmp_path / "out.rejected"
    out.symlink_to(tmp_path / "disk")
    for limit, code in (("0.001%", 3), ("900%", 0), ("0.001%", 3), ("900%", 0)):
        assert main(command(home, out, "--max-perplexity-increase", limit, step="rtn: {bits: 2}")) == code
        assert out.is_symlink() and (rejected / CERTIFICATE).exists() == (code == 3) == (not any(out.iterdir()))
    assert len(solved) == 2


def test_a_gate_that_is_met(home: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert main(command(home, tmp_path / "out", "--max-perplexity-increase", "900%")) == 0
    assert weights_of(tmp_path / "out") == weights_of(undisturbed)
    assert not (tmp_path / "out.rejected").exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_lies_where_a_rejected_result_would_go(kind: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that thrifty did not make is removed."""
    rejected = tmp_path / "out.rejected"
    thesis = rejected / "thesis.tex" if kind == "folder" else rejected
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("years of work")
    code = main(command(home, tmp_path / "out", *GATE, step="rtn: {bits: 2}"))
    assert thesis.read_text() == "years of work"
    assert code == 2
    assert str(rejected) in sentence(capsys.readouterr())
    assert not (tmp_path / "out").exists()


# -- a folder named by a dot -------------------------------------------------------------------------------------------


def test_out_is_the_present_folder(home: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(command(home, Path())) == 0
    assert weights_of(tmp_path / "here") == weights_of(undisturbed)


@pytest.mark.parametrize("words", [["repeat", "."], ["export", ".", "--to", "dense"]], ids=" ".join)
def test_the_present_folder_is_a_result(words: list[str], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(undisturbed, tmp_path / "here")
    before = digests(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert main(words) == 0
    assert digests(tmp_path / "here") == before
