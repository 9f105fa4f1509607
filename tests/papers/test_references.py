"""The forms that other programs read are read back."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.papers.samples import HOSTILE, paper, records
from thrifty.papers.references import COLUMNS, bibtex, plain, short_authors, table
from thrifty.papers.status import Statuses

NONE = Statuses([], {})


@given(st.lists(records(), max_size=5))
def test_csv_comes_back(found) -> None:
    rows = list(csv.DictReader(io.StringIO(table(found, NONE), newline="")))
    assert len(rows) == len(found)
    for record, row in zip(found, rows, strict=True):
        assert tuple(row) == COLUMNS
        assert (row["id"], row["title"], row["authors"]) == (record.id, record.title, "; ".join(record.authors))
        assert (row["status"], row["module"], row["version"]) == ("unread", record.module or "", str(record.version))


def test_bibtex() -> None:
    record = paper(title="Méthode & more: 50% of $x_1$ in C_2", categories=("cs.LG", "cs.CL"), authors=("A B", "C & D"))
    assert bibtex(record) == (
        "@misc{2506.00001,\n"
        "  title = {{Méthode \\& more: 50\\% of $x_1$ in C\\_2}},\n"
        "  author = {A B and C \\& D},\n"
        "  year = {2025},\n"
        "  eprint = {2506.00001},\n"
        "  archivePrefix = {arXiv},\n"
        "  primaryClass = {cs.LG},\n"
        "  url = {https://arxiv.org/abs/2506.00001v1}\n"
        "}\n"
    )


def test_what_authors_escaped_is_left() -> None:
    assert "title = {{50\\% of \\& {A}}}" in bibtex(paper(title="50\\% of \\& {A}"))


@pytest.mark.parametrize("title", HOSTILE)
def test_no_bare_sign_is_left(title: str) -> None:
    value = re.search(r"title = \{\{(.*)\}\},\n", bibtex(paper(title=title)))[1]
    assert not re.search(r"(?<!\\)[&%#]", value)


def test_old_ids_make_keys() -> None:
    assert bibtex(paper("hep-th/9901001")).startswith("@misc{hep-th_9901001,")


def test_plain_values_hold_the_status() -> None:
    found = plain(paper(fit="core", reason="useful"), NONE)
    assert found["status"] == {"word": "planned", "reason": "useful"} and found["abstract"] == "We prune large language models."


@pytest.mark.parametrize(("count", "text"), [(1, "a0"), (3, "a0, a1, a2"), (4, "a0, a1, a2 et al.")])
def test_short_authors(count: int, text: str) -> None:
    assert short_authors(paper(authors=tuple(f"a{n}" for n in range(count)))) == text
