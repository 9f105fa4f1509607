"""Files that are whole or absent, and when they are on the disk."""

from __future__ import annotations

import hashlib
import os

import pytest

from thrifty.base import store
from thrifty.base.errors import RunError
from thrifty.base.store import settled, write_atomic, write_unsettled


@pytest.fixture
def flushed(monkeypatch):
    """Names of what was flushed, in order."""
    names, flush = [], os.fsync

    def noting(descriptor: int) -> None:
        names.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        flush(descriptor)

    monkeypatch.setattr(store.os, "fsync", noting)
    return names


def test_an_atomic_file_is_flushed_before_it_has_its_name_and_then_its_folder(tmp_path, flushed):
    write_atomic(tmp_path / "a", lambda temporary: temporary.write_bytes(b"whole") and None)
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert len(flushed) == 2 and flushed[0].startswith(".a.") and flushed[1] == tmp_path.name


def test_unsettled_files_are_flushed_once_with_their_folder_when_they_are_settled(tmp_path, flushed):
    paths = [tmp_path / "blocks" / "a", tmp_path / "blocks" / "b"]
    for path in paths:
        write_unsettled(path, lambda temporary, name=path.name: temporary.write_text(name * 3) and None)
    assert not flushed
    assert settled(*paths) == [hashlib.sha256(text).hexdigest() for text in (b"aaa", b"bbb")]
    assert flushed == ["a", "b", "blocks"]


@pytest.mark.parametrize("write", [write_atomic, write_unsettled])
def test_what_fails_leaves_the_earlier_file_and_nothing_else(tmp_path, write):
    def failing(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("earlier")
    with pytest.raises(RunError, match="disk is full"):
        write(tmp_path / "a", failing)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "earlier")]


def test_what_cannot_be_settled_is_told_and_what_is_not_there_has_no_digest(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    assert settled(tmp_path / "nowhere") == [""]
    (tmp_path / "a").write_text("whole")
    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(RunError, match="disk is full"):
        settled(tmp_path / "a")
