"""Records and digests on disk: what is added once stays as it is, faults are named, nothing is half written."""

from __future__ import annotations

import errno
import json
import os
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.papers.samples import DIGEST, paper, records
from thrifty.base.errors import InputError, RunError
from thrifty.papers import classic
from thrifty.papers.classic import Digest
from thrifty.papers.library import SHIPPED, Library, own_folder
from thrifty.papers.record import Record, code_addresses, read_record


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def empty(tmp_path: Path) -> Library:
    """A library without the shipped records."""
    return Library(tmp_path / "own", tmp_path / "none")


def test_the_shipped_records_are_whole(tmp_path: Path) -> None:
    library = Library(tmp_path)
    assert len(library.records) == 132 and library.digests.keys() == {date(2025, 6, 13)}
    fits = [record.fit for record in library.records.values()]
    assert {fit: fits.count(fit) for fit in set(fits)} == {"core": 41, "near": 26, "far": 58, "none": 7}
    assert all(record.kind and record.domain and record.name and record.reason for record in library.records.values())
    assert all((record.module is not None) == (record.fit in ("core", "near")) for record in library.records.values())
    assert not list(tmp_path.iterdir())


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    digest = classic.read(DIGEST.read_text(), DIGEST)
    library = empty(tmp_path)
    first = library.add_digest(digest)
    assert len(first.new) == 132
    before = snapshot(library.own)
    for again in (library, empty(tmp_path)):
        added = again.add_digest(digest)
        assert not added.new and not added.changed and len(added.known) == 132
    assert snapshot(library.own) == before and len(before) == 133


def test_what_readers_said_outlives_an_import(tmp_path: Path) -> None:
    library = Library(tmp_path)
    added = library.add_digest(classic.read(DIGEST.read_text(), DIGEST))
    assert not added.new and not added.changed
    assert library.record("AWP").title.startswith("AWP: ") and not list(tmp_path.rglob("*.json"))


def test_a_newer_version_keeps_what_readers_said(tmp_path: Path) -> None:
    library = Library(tmp_path)
    before = library.record("AWP")
    newer = Record(
        id=before.id, version=2, published=before.published, title=classic.title_of(before), authors=("New Author",), abstract="New."
    )
    assert library.add([newer]).changed == (before.id,)
    after = Library(tmp_path).record("AWP")
    assert (after.version, after.authors, after.abstract) == (2, ("New Author",), "New.")
    assert (after.title, after.fit, after.module, after.builds_on) == (before.title, before.fit, before.module, before.builds_on)
    assert library.add([before]).known == (before.id,)  # an older version changes nothing
    assert Library(tmp_path).record("AWP").version == 2


@settings(max_examples=30)
@given(record=records())
def test_a_record_is_read_as_it_was_written(record: Record, tmp_path_factory: pytest.TempPathFactory) -> None:
    library = empty(tmp_path_factory.mktemp("library"))
    library.add([record])
    assert read_record(library.path_of(record.id, library.own)) == record


def test_old_ids_have_a_place(tmp_path: Path) -> None:
    library = empty(tmp_path)
    library.add([paper("hep-th/9901001"), paper("math.GT/0309136")])
    assert set(empty(tmp_path).records) == {"hep-th/9901001", "math.GT/0309136"}
    assert (library.own / "records" / "9901" / "hep-th_9901001.json").exists()


@pytest.mark.parametrize("word", ["2506.10205", "2506.10205v1", "arXiv:2506.10205", "http://arxiv.org/abs/2506.10205v1", "awp", "AWP"])
def test_papers_are_named_in_many_ways(word: str, tmp_path: Path) -> None:
    assert Library(tmp_path).record(word).id == "2506.10205"


def test_a_paper_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no paper 'nothing' in the library; `thrifty papers search"):
        Library(tmp_path).record("nothing")


FAULTS = {
    "broken JSON": (lambda text: text.replace('"version": 1,', '"version": ,'), "line 3,"),
    "an unknown word": (lambda text: text.replace('"kind": "method"', '"kind": "trick"'), ", kind: "),
    "an unknown field": (lambda text: text.replace('"kind"', '"sort"'), ", sort: "),
    "no such day": (lambda text: text.replace("2025-06-11", "2025-06-41"), "line 4, published: "),
    "a title of two lines": (lambda text: text.replace("AWP: ", "AWP:\\n"), "line 5, title: "),
    "a field left out": (lambda text: text.replace('  "version": 1,\n', ""), ", version: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_record_names_file_line_and_field(fault: str, tmp_path: Path) -> None:
    change, said = FAULTS[fault]
    good = Library.path_of("2506.10205", SHIPPED)
    bad = Library.path_of("2506.10205", tmp_path)
    bad.parent.mkdir(parents=True)
    bad.write_text(change(good.read_text()))
    with pytest.raises(InputError) as caught:
        _ = Library(tmp_path).records
    assert str(bad) in str(caught.value) and said in str(caught.value), str(caught.value)


def test_a_record_under_another_name_is_a_fault(tmp_path: Path) -> None:
    wrong = Library.path_of("2506.99999", tmp_path)
    wrong.parent.mkdir(parents=True)
    wrong.write_text(Library.path_of("2506.10205", SHIPPED).read_text())
    with pytest.raises(InputError, match=r"id: it says 2506\.10205, but"):
        _ = Library(tmp_path).records


def test_a_digest_of_an_unknown_paper_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "digests").mkdir()
    (tmp_path / "digests" / "2025-06-20.json").write_text(json.dumps({"papers": ["2506.99999"]}))
    with pytest.raises(InputError, match=r"papers: the library holds no record of 2506\.99999"):
        _ = Library(tmp_path).digests


def test_a_bad_digest_writes_nothing(tmp_path: Path) -> None:
    library = empty(tmp_path)
    with pytest.raises(InputError):
        library.add_digest(classic.read(DIGEST.read_text()[:-500], DIGEST))
    assert not library.own.exists()


def test_a_digest_is_written_after_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off in the middle, an import leaves whole records and no digest; the next one completes it."""
    library = empty(tmp_path)
    replace, times = os.replace, []

    def stop(source: Path, target: Path) -> None:
        times.append(target)
        if len(times) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    digest = Digest(date(2025, 6, 13), tuple(paper(f"2506.0000{n}") for n in range(5)))
    with pytest.raises(KeyboardInterrupt):
        library.add_digest(digest)
    monkeypatch.undo()
    left = empty(tmp_path)
    assert len(left.records) == 2 and not left.digests and not list(tmp_path.rglob("*.tmp"))
    assert len(left.add_digest(digest).new) == 3
    assert empty(tmp_path).digests == {date(2025, 6, 13): tuple(record.id for record in digest.records)}


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="disk is full"):
        empty(tmp_path).add([paper()])
    assert not list(tmp_path.rglob("*.json"))


def test_where_own_records_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_PAPERS", "/somewhere")
    assert own_folder() == Path("/somewhere")
    monkeypatch.delenv("THRIFTY_PAPERS")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert own_folder() == Path("/data/thrifty/papers")


@pytest.mark.parametrize(
    ("abstract", "expected"),
    [
        ("Code: https://github.com/a/b.", ("https://github.com/a/b",)),
        ("(https://github.com/a/b)", ("https://github.com/a/b",)),
        ("at https://github.com/Aaa/\nBbb-ccc", ("https://github.com/Aaa/Bbb-ccc",)),
        ("github.com/a/b and https://huggingface.co/x", ("https://github.com/a/b", "https://huggingface.co/x")),
        ("https://github.com/a/b, https://github.com/a/b", ("https://github.com/a/b",)),
        ("see https://a.github.io/page/", ("https://a.github.io/page/",)),
        ("see https://example.org/paper and mail@github.com/x", ()),
        ("{https://github.com/a/b}", ("https://github.com/a/b",)),
    ],
)
def test_code_addresses(abstract: str, expected: tuple[str, ...]) -> None:
    assert code_addresses(abstract) == expected
