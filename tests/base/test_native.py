"""C that is compiled when it is first wanted: kept, rebuilt when it changes, and done without where it cannot be had."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from thrifty.base import native
from thrifty.base.events import Event, listening

pytestmark = pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="there is no C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.OFF, raising=False)
    monkeypatch.delenv("CC", raising=False)
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def library(source: Path) -> tuple[object, list[Event]]:
    """What a fresh process would get, and what it says."""
    said: list[Event] = []
    with listening(said.append):
        return native.library.__wrapped__(source), said


def test_it_is_compiled_once_and_again_when_it_changes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = library(source)
    assert found.answer() == 42 and not said
    assert [path.suffix for path in (tmp_path / "cache" / "thrifty" / "native").iterdir()] == [".so"]
    with monkeypatch.context() as patch:
        patch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
        assert library(source)[0].answer() == 42
    source.write_text("int answer(void) { return 43; }\n")
    assert library(source)[0].answer() == 43


def test_without_a_cache_it_is_built_for_the_process(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found, said = library(source)
    assert found.answer() == 42 and not said


def test_why_there_is_none_is_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.OFF, "0")
    assert library(source) == (None, [])  # who switches it off knows
    monkeypatch.delenv(native.OFF)
    source.write_text("int answer(void) { return forty_two; }\n")
    found, (said,) = library(source)
    assert found is None and said.kind == "note" and "answer is computed by torch alone" in said.message and "forty_two" in said.message
    monkeypatch.setattr(native, "SECONDS", 0)
    assert "more than 0 seconds" in library(source)[1][0].message
    monkeypatch.setenv("PATH", str(tmp_path))
    found, (said,) = library(source)
    assert found is None and "there is no C compiler" in said.message


def test_each_part_has_a_thread_of_its_own_and_failures_come_back() -> None:
    together = threading.Barrier(3, timeout=20)
    assert native.in_threads(lambda part: (together.wait() >= 0, part), range(3)) == [(True, 0), (True, 1), (True, 2)]
    assert native.in_threads(lambda part: threading.current_thread() is threading.main_thread(), [0]) == [True]
    with pytest.raises(ZeroDivisionError):
        native.in_threads(lambda part: 1 // part, [1, 0])
