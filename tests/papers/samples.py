"""Records for tests: plain ones, and ones whose texts are as awkward as texts get."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from thrifty.base.method import Paper
from thrifty.papers.record import MODULES, Record

DIGEST = Path(__file__).parent / "2025-06-13.md"

HOSTILE = (
    'Is "Sparse" Enough? $\\ell_0$ & more: a [bracketed](#title) view',
    "<img src=x onerror=alert(1)> and `code` *stars* _under_ ~~gone~~ | pipes",
    "Poincaré, Nyström's C:\\path #1 ~ {braces} ^ %",
    "# Not a heading",
    "**quantize** already bold: KV",
    "</script><script>alert(1)</script> ](#x",
)
"""Titles."""


def paper(identifier: str = "2506.00001", **more: Any) -> Record:
    """A record of which only some fields matter."""
    plain: dict[str, Any] = {
        "version": 1,
        "published": date(2025, 6, 10),
        "title": f"Paper {identifier}",
        "authors": ("Ada Lovelace", "Charles Babbage"),
        "abstract": "We prune large language models.",
    }
    return Record(**{"id": identifier, **plain, **more})


def method(name: str, arxiv: str | None) -> Any:
    """A stand-in for the class of a method; it does not join the real ones."""
    source = None if arxiv is None else Paper("Someone", 2025, "A title", arxiv)
    return SimpleNamespace(name=name, family="weights.solve", paper=source, __module__=f"thrifty.weights.solve.{name}")


def _line(text: str) -> str:
    return " ".join(text.split())


_signs = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\x85")
_fragments = st.one_of(
    st.sampled_from([*HOSTILE, "KV", "sparse", "**", "*", "low-bit", "](#", "# Heading", ": ", "\\", "$"]), st.text(_signs)
)
titles = st.lists(_fragments, min_size=1, max_size=4).map(" ".join).map(_line).filter(bool)
"""One line each, with words of every kind."""
names = st.text(_signs, min_size=1).map(_line).map(lambda name: name.replace(",", "")).filter(bool)
_abstract_lines = st.one_of(
    _fragments.map(lambda text: text.replace("\n", " ")), st.just(""), st.just("  A new paragraph."), st.just("## A heading")
)
abstracts = st.lists(_abstract_lines, min_size=1, max_size=6).map("\n".join)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record."""
    month, number = draw(st.integers(1, 12)), draw(st.integers(0, 99999))
    return paper(
        f"{draw(st.integers(7, 30)):02}{month:02}.{number:05}",
        version=draw(st.integers(1, 12)),
        published=draw(st.dates(date(2007, 4, 1), date(2035, 1, 1))),
        title=draw(titles),
        authors=tuple(draw(st.lists(names, min_size=1, max_size=4))),
        abstract=draw(abstracts),
        module=draw(st.sampled_from([None, *MODULES])),
    )
