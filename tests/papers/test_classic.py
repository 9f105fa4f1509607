"""The classic layout, to the byte: the real digest, hostile titles, and every fault named by file, line and field."""

from __future__ import annotations

import hashlib
from datetime import date

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.papers.samples import DIGEST, HOSTILE, paper, records
from thrifty.base.errors import InputError
from thrifty.papers.classic import BOLD, Digest, read, title_of, write
from thrifty.papers.library import Library


@pytest.fixture(scope="module")
def text() -> str:
    return DIGEST.read_bytes().decode()


def test_the_real_digest_comes_back_to_the_byte(text: str) -> None:
    assert len(text.encode()) == 235_634
    assert hashlib.sha256(write(read(text, DIGEST)).encode()).hexdigest() == hashlib.sha256(text.encode()).hexdigest()


def test_the_shipped_records_write_it_too(text: str, tmp_path) -> None:
    """Their titles have their colons again, which the layout drops."""
    digest = Library(tmp_path).digest(date(2025, 6, 13))
    assert write(digest) == text
    assert sum(":" in record.title for record in digest.records) > 80


def test_what_it_reads(text: str) -> None:
    digest = read(text, DIGEST)
    assert digest.day == date(2025, 6, 13) and len(digest.records) == 132
    awp = next(record for record in digest.records if record.id == "2506.10205")
    assert awp.title == "AWP Activation-Aware Weight Pruning and Quantization with Projected Gradient Descent"
    assert awp.authors[0] == "Jing Liu" and awp.published == date(2025, 6, 11)
    assert awp.abstract.startswith(
        "To address the enormous size of Large Language Models (LLMs), model\ncompression methods, such as quantization"
    )
    assert not any(f"**{word}**" in record.abstract for record in digest.records for word in BOLD)
    assert sum(bool(record.code) for record in digest.records) == 22


def _sayable(record) -> bool:
    """What this layout can say at all."""
    try:
        write(Digest(date(2025, 1, 1), (record,)))
    except InputError:
        return False
    return not any(f"**{word}**" in record.abstract for word in BOLD)


@given(st.lists(records(), min_size=1, max_size=4, unique_by=lambda record: record.id), st.dates(date(2000, 1, 1), date(2040, 1, 1)))
def test_any_papers_come_back(found, day) -> None:
    assume(all(_sayable(record) for record in found))
    digest = read(write(Digest(day, tuple(found))), "any.md")
    assert digest.day == day
    for before, after in zip(found, digest.records, strict=True):
        assert after.title == title_of(before) and after.abstract == before.abstract
        assert (after.id, after.version, after.published, after.authors) == (before.id, before.version, before.published, before.authors)


@pytest.mark.parametrize("title", [title.replace(":", "") for title in HOSTILE])
def test_hostile_titles_come_back(title: str) -> None:
    before = paper(title=" ".join(title.split()), abstract="first\n## A heading inside\n```\n# no heading in here\n```\n  last & least")
    after = read(write(Digest(date(2025, 6, 13), (before,))), "any.md").records[0]
    assert (after.title, after.abstract) == (before.title, before.abstract)


def test_nothing_cannot_be_said() -> None:
    with pytest.raises(InputError, match="there are no papers"):
        write(Digest(date(2025, 6, 13), ()))


def test_a_heading_inside_an_abstract_stands_in_the_contents() -> None:
    written = write(Digest(date(2025, 6, 13), (paper(abstract="one\n## two words\nthree"),)))
    assert "* [Paper 2506.00001](#Paper-2506.00001)\n* [two words](#two-words)\n" in written


@pytest.mark.parametrize(
    "change",
    [
        {"abstract": "a\n\n\nb"},
        {"abstract": "\na"},
        {"abstract": "a\x0bb"},
        {"abstract": "a\u2028b"},
        {"title": ": a"},
        {"authors": ("Last, First",)},
    ],
)
def test_what_the_layout_cannot_say_is_refused(change) -> None:
    with pytest.raises(InputError, match="use --layout thrifty"):
        write(Digest(date(2025, 6, 13), (paper(**change),)))


FAULTS = {
    "an empty file": (lambda text: "", "line 1, date of the digest"),
    "no date": (lambda text: text.replace("# 2025-06-13", "# yesterday", 1), "line 1, date of the digest"),
    "no such day": (lambda text: text.replace("# 2025-06-13", "# 2025-06-31", 1), "line 1, date of the digest: there is no day"),
    "no contents": (lambda text: text.replace("# Table of Contents", "# Contents", 1), "line 3, contents"),
    "a contents line that is no link": (lambda text: text.replace("* [", "- [", 1), "line 4, contents"),
    "an anchor of another title": (lambda text: text.replace("](#Beyond-", "](#Below-", 1), "line 4, contents: the link does not lead"),
    "a title that the contents have not": (
        lambda text: text.replace("## Beyond ", "## Below ", 1),
        "line 138, title: it is not what the contents",
    ),
    "no authors": (lambda text: text.replace(">Authors: ", "Authors: ", 1), "line 140, authors"),
    "a date that is none": (lambda text: text.replace(">2025-06-12", ">12 June", 1), "line 142, date"),
    "an address of no paper": (lambda text: text.replace("abs/2506.10967v1", "abs/2506.10967", 1), "line 144, address"),
    "a line too many": (lambda text: text.replace("\n\n>Authors", "\n\n\n>Authors", 1), "line 140, authors"),
    "cut in an abstract": (lambda text: text[:-900], "abstract: the file ends"),
    "cut after a paper": (lambda text: text[: text.rindex("\n\n\n## ") + 2], "contents: the file ends before"),
    "windows line ends": (lambda text: text.replace("\n", "\r\n"), "line 1, date of the digest"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_line_and_field(fault: str, text: str) -> None:
    broken, said = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        read(broken(text), "week.md")
    assert "week.md, line" in str(caught.value) and said in str(caught.value), str(caught.value)


def test_a_paper_that_stands_twice_is_a_fault() -> None:
    written = write(Digest(date(2025, 6, 13), (paper(), paper("2506.00002", title="Another"))))
    with pytest.raises(InputError, match=r"address: 2506\.00001 stands here a second time"):
        read(written.replace("2506.00002v1", "2506.00001v1"), "week.md")
