"""The classic digest: a contents list, then title, authors, date, address and abstract of each paper, key words in bold.

This is the layout of the weekly files of the EfficientPaper collection, to the byte. Titles lose their colons in it and contents links
rarely resolve, so it is read and written for exchange; `digest.py` writes the better one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from thrifty.base.errors import InputError
from thrifty.papers.record import IDENTIFIER, Record, code_addresses

BOLD = ("sparse", "pruning", "sparsity", "quantization", "quantize", "low-bit", "acceleration", "KV")
"""Words in bold in an abstract; as they are written, inside other words too. None lies within or overlaps another."""

_CONTENTS = "# Table of Contents"
_ENTRY = re.compile(r"\* \[(?P<title>.*)\]\(#(?P<anchor>.*)\)")
_HEADING = re.compile(r"#{1,3} ")
_ADDRESS = re.compile(rf"> http://arxiv\.org/abs/(?P<id>{IDENTIFIER})v(?P<version>[1-9]\d*)")


@dataclass(frozen=True)
class Digest:
    """A digest: the date it was made, and its papers in their order."""

    day: date
    records: tuple[Record, ...]


def write(digest: Digest) -> str:
    """The classic text of a digest. Raises InputError where a record cannot be said in this layout and read again."""
    if not digest.records:
        raise InputError(f"there are no papers for {digest.day}, and the classic layout has no way to say so")
    for record in digest.records:
        _check(record)
    headings = [heading for record in digest.records for heading in _headings(record)]
    contents = [f"* [{heading}](#{heading.replace(' ', '-')})" for heading in headings]
    papers = [_paper(record) for record in digest.records]
    return "\n".join([f"# {digest.day}", "", _CONTENTS, *contents]) + "\n\n\n" + "\n\n\n".join(papers) + "\n\n"


def read(text: str, source: Path | str) -> Digest:
    """The digest that a classic text holds; source: its name in errors. Raises InputError that names file, line and field."""
    return _Reader(text, str(source)).digest()


def title_of(record: Record) -> str:
    """The title as this layout has it: without colons."""
    return record.title.replace(":", "")


def _paper(record: Record) -> str:
    abstract = record.abstract
    for word in BOLD:
        abstract = abstract.replace(word, f"**{word}**")
    address = f"http://arxiv.org/abs/{record.id}v{record.version}"
    return f"## {title_of(record)}\n\n>Authors: {', '.join(record.authors)}\n\n>{record.published}\n\n> {address}\n\n{abstract}"


def _headings(record: Record) -> list[str]:
    """What of a paper stands in the contents list: its title, and every line of its abstract that Markdown takes for a heading."""
    found, fenced = [title_of(record)], False
    for line in record.abstract.split("\n"):
        fenced ^= line.startswith("```")
        if not fenced and (heading := _HEADING.match(line)):
            found.append(line[heading.end() :])
    return found


def _check(record: Record) -> None:
    where = f"{record.id}, in the classic layout"
    if " ".join(title_of(record).split()) != title_of(record) or not title_of(record):
        raise InputError(f"{where}: title {record.title!r} without its colons leaves a stray space; use --layout thrifty")
    if re.search(r"[\r\v\f\x1c-\x1e\x85\u2028\u2029]", record.abstract):
        raise InputError(f"{where}: the abstract holds a line break other than a newline; use --layout thrifty")
    if not record.abstract or record.abstract != record.abstract.strip("\n") or "\n\n\n" in record.abstract:
        raise InputError(f"{where}: the abstract is empty, starts or ends with an empty line, or holds two in a row; use --layout thrifty")
    if any(", " in author or author.endswith(",") for author in record.authors):
        raise InputError(f"{where}: the name of an author holds a comma; use --layout thrifty")


class _Reader:
    """Reads line by line, so that an error can say where."""

    def __init__(self, text: str, source: str) -> None:
        self.lines = text.split("\n")
        self.source = source
        self.at = 0  # the line that is read next, counted from 0

    def digest(self) -> Digest:
        found = self.expect(re.compile(r"# (?P<day>\d{4}-\d\d-\d\d)"), "date of the digest", "# YYYY-MM-DD")
        day = self.day(found["day"], "date of the digest")
        self.empty()
        self.expect(re.compile(re.escape(_CONTENTS)), "contents", _CONTENTS)
        entries = self.entries()
        self.empty()
        self.empty()
        records: dict[str, Record] = {}
        done = 0  # how many lines of the contents list were met
        while self.at < len(self.lines):
            first = self.at
            record = self.record()
            headings = _headings(record)
            listed = entries[done : done + len(headings)]
            if headings != listed:
                self.fail(first, "title", f"it is not what the contents list has there: {_first_difference(headings, listed)}")
            if record.id in records:
                self.fail(first, "address", f"{record.id} stands here a second time")
            records[record.id] = record
            done += len(headings)
        if done < len(entries):
            self.fail(len(self.lines) - 1, "contents", f"the file ends before {entries[done]!r}, which its contents list has")
        return Digest(day, tuple(records.values()))

    def entries(self) -> list[str]:
        found = []
        while self.at < len(self.lines) and self.lines[self.at]:
            entry = self.expect(_ENTRY, "contents", "* [TITLE](#ANCHOR)")
            # A title may itself hold `](#`, so the split is where the anchor is made of what stands before it.
            line = self.lines[self.at - 1]
            title = next((title for title in _splits(line) if line == f"* [{title}](#{title.replace(' ', '-')})"), None)
            if title is None:
                self.fail(self.at - 1, "contents", f"the link does not lead to the title {entry['title']!r}")
            found.append(title)
        return found

    def record(self) -> Record:
        first = self.at
        title = self.expect(re.compile(r"## (?P<it>\S.*)"), "title", "## TITLE")["it"]
        self.empty()
        authors = self.expect(re.compile(r">Authors: (?P<it>\S.*)"), "authors", ">Authors: NAME, NAME")["it"]
        self.empty()
        published = self.day(self.expect(re.compile(r">(?P<it>\d{4}-\d\d-\d\d)"), "date", ">YYYY-MM-DD")["it"], "date")
        self.empty()
        address = self.expect(_ADDRESS, "address", "> http://arxiv.org/abs/IDvN")
        self.empty()
        abstract = self.abstract()
        try:
            return Record(
                id=address["id"],
                version=int(address["version"]),
                published=published,
                title=title,
                authors=tuple(authors.split(", ")),
                abstract=abstract,
                code=code_addresses(abstract),
            )
        except ValidationError as error:
            problem = error.errors()[0]
            self.fail(first, str(problem["loc"][0]), problem["msg"])

    def abstract(self) -> str:
        """Up to the two empty lines before the next paper, or to the end of the file."""
        start = self.at
        while self.at < len(self.lines) and self.lines[self.at : self.at + 2] != ["", ""]:
            self.at += 1
        text = "\n".join(self.lines[start : self.at])
        if self.at >= len(self.lines) or not text:
            self.fail(start, "abstract", "the file ends before the empty line after it" if text else "there is none")
        self.at += 2
        if self.at < len(self.lines) and not self.lines[self.at].startswith("## "):
            self.fail(self.at, "title", "after two empty lines the next paper must start: '## TITLE'")
        for word in BOLD:
            text = text.replace(f"**{word}**", word)
        return text

    def expect(self, pattern: re.Pattern[str], field: str, form: str) -> re.Match[str]:
        line = self.lines[self.at] if self.at < len(self.lines) else None
        found = pattern.fullmatch(line) if line is not None else None
        if found is None:
            self.fail(self.at, field, f"expected '{form}', found {'the end of the file' if line is None else repr(line[:80])}")
        self.at += 1
        return found

    def empty(self) -> None:
        self.expect(re.compile(""), "layout", "an empty line")

    def day(self, text: str, field: str) -> date:
        try:
            return date.fromisoformat(text)
        except ValueError:
            self.fail(self.at - 1, field, f"there is no day {text}")

    def fail(self, line: int, field: str, what: str) -> None:
        raise InputError(f"{self.source}, line {line + 1}, {field}: {what}; nothing was imported")


def _splits(line: str) -> list[str]:
    """Every title that a contents line could hold."""
    return [line[3 : found.start()] for found in re.finditer(r"\]\(#", line)]


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    index = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), min(len(found), len(expected)))
    there = repr(expected[index]) if index < len(expected) else "nothing"
    return f"{found[index]!r} here, {there} there"
