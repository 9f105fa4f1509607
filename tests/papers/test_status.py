"""What became of a paper follows from the methods that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.papers.samples import method, paper
from thrifty.papers.library import Library
from thrifty.papers.status import MEASURED, WORDS, Statuses
from thrifty.pipeline.catalogue import load_methods

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("fit", "word"), [("core", "planned"), ("near", "planned"), ("far", "elsewhere"), ("none", "elsewhere"), (None, "unread")]
)
def test_without_a_method(fit: str | None, word: str) -> None:
    status = Statuses([method("other", "2506.99999")], {}).of(paper(fit=fit, reason="because"))
    assert status.word == word and (status.reason == "because" or fit is None) and not status.methods


def test_a_method_that_names_the_paper_makes_it_implemented() -> None:
    record = paper("2506.00001", fit="far")
    measured = {"b": {"figure": "half the size", "test": "tests/b.py"}}
    status = Statuses([method("a", "2506.00001"), method("b", "2506.00001"), method("c", None)], measured).of(record)
    assert status.word == "implemented" and status.methods == ("a", "b") and status.page == "methods/#a"
    assert (status.code, status.test, status.figure) == ("thrifty.weights.solve.a", "tests/b.py", "half the size")


def test_a_part_of_a_paper_is_not_the_paper() -> None:
    record, whole, part = paper("2506.00001", fit="core"), method("a", "2506.00001"), method("b", "2506.00001")
    part.paper = replace(part.paper, part="its first half")
    status = Statuses([part], {"b": {"figure": "half the size", "test": "tests/b.py"}}).of(record)
    assert (status.word, status.methods, status.figure) == ("planned", ("b",), None) and "its first half" in status.reason
    both = Statuses([part, whole], {}).of(record)
    assert (both.word, both.methods) == ("implemented", ("a",))


def test_counts_cover_every_paper() -> None:
    found = [paper("2506.00001", fit="core"), paper("2506.00002", fit="far"), paper("2506.00003"), paper("2506.00004", fit="near")]
    counts = Statuses([method("a", "2506.00004")], {}).counts(found)
    assert counts == {"implemented": 1, "planned": 1, "elsewhere": 1, "unread": 1} and tuple(counts) == WORDS


def test_the_real_methods(tmp_path: Path) -> None:
    """Every implemented paper of the catalogue has its code, its test and its measured figure."""
    statuses = Statuses(load_methods().values())
    done = {record.name: statuses.of(record) for record in Library(tmp_path).records.values() if statuses.of(record).word == "implemented"}
    assert {"AWP", "BAQ"} <= done.keys()
    for name, status in done.items():
        assert status.figure and any(metric in status.figure for metric in ("perplexity", "relative error")), name
        assert (ROOT / "src" / f"{status.code.replace('.', '/')}.py").is_file() and (ROOT / status.test).is_file()


def test_only_methods_are_measured() -> None:
    known = load_methods().keys()
    assert MEASURED.exists() and Statuses([]).measured.keys() <= known
