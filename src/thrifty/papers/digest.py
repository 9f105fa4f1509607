"""The digest: papers grouped by the part of thrifty they belong to, each with a score, the reason why it is here, and what became of it.

Its Markdown has anchors of its own, so that every link of its contents leads somewhere however it is rendered, and holds each abstract
as it was written.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from markdown_it import MarkdownIt

from thrifty.papers.record import Record
from thrifty.papers.references import bibtex, plain, table
from thrifty.papers.relevance import THRESHOLD, Judge, Relevance
from thrifty.papers.status import Status, Statuses

Form = Literal["markdown", "html", "json", "bibtex", "csv"]
FORMS: tuple[Form, ...] = get_args(Form)

OTHER = "other fields"
PARTS = {
    "quantize": "Fewer bits",
    "prune": "Fewer weights",
    "restructure": "Other shapes",
    "attention": "Cheaper attention",
    "kv": "Smaller caches",
    "tokens": "Fewer tokens",
    "decode": "Fewer decoding steps",
    "tune": "Cheaper training",
    "federated": "Federated tuning",
    "inspect": "Looking inside",
    "profile": "What it costs",
    "audit": "What was lost",
    OTHER: "Other fields",
}
"""The headings of the groups, in their order."""


@dataclass(frozen=True)
class Entry:
    """A paper of a digest."""

    record: Record
    relevance: Relevance
    status: Status

    @property
    def part(self) -> str:
        """The part of thrifty that it stands under: what a reader said, else what it speaks of most where that is enough."""
        if self.record.fit is not None:
            return self.record.module if self.record.module and self.record.fit in ("core", "near") else OTHER
        return self.relevance.module or OTHER if self.relevance.score >= THRESHOLD else OTHER


@dataclass(frozen=True)
class Issue:
    """A digest to be written: its day, its entries by part, best first. docs: the address that pages of the documentation begin with."""

    day: date
    entries: tuple[Entry, ...]
    statuses: Statuses
    docs: str | None = None

    @classmethod
    def of(cls, day: date, records: Iterable[Record], statuses: Statuses, judge: Judge, docs: str | None = None) -> Issue:
        """The digest of these papers."""
        found = [Entry(record, judge.of(record), statuses.of(record)) for record in records]
        order = list(PARTS)
        found.sort(key=lambda entry: (order.index(entry.part), -entry.relevance.score, entry.record.id))
        return cls(day, tuple(found), statuses, docs)

    def groups(self) -> dict[str, list[Entry]]:
        """The entries of each part that has any."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.part, []).append(entry)
        return found


def write(issue: Issue, form: Form) -> str:
    """The text of a digest."""
    return _WRITERS[form](issue)


def markdown(issue: Issue) -> str:
    """The digest as Markdown."""
    groups = issue.groups()
    relevant = sum(entry.relevance.score >= THRESHOLD for entry in issue.entries)
    counts = ", ".join(f"{number} {word}" for word, number in issue.statuses.counts(e.record for e in issue.entries).items() if number)
    head = f"{_many(len(issue.entries), 'paper')}; {relevant} with a score of {THRESHOLD:g} or more. {counts.capitalize()}."
    lines = [f"# Papers up to {issue.day}", head if issue.entries else "No papers.", "## Contents"]
    for part, entries in groups.items():
        inner = "\n".join(f"  - [{escaped(entry.record.title)}](#{anchor(entry.record)})" for entry in entries)
        lines.append(f"- [{PARTS[part]}](#{_part_anchor(part)}) ({len(entries)})\n{inner}")
    for part, entries in groups.items():
        lines.append(f'## <a id="{_part_anchor(part)}"></a>{PARTS[part]}')
        lines += [_entry(entry, issue.docs) for entry in entries]
    return "\n\n".join(lines) + "\n"


def page(issue: Issue) -> str:
    """The digest as one HTML page, made from its Markdown."""
    body = MarkdownIt("commonmark", {"html": True}).render(markdown(issue))
    style = (Path(__file__).parent / "page" / "digest.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Papers up to {issue.day}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{style}</style></head><body>\n{body}</body></html>\n'


def anchor(record: Record) -> str:
    """Where a paper stands in a digest."""
    return f"paper-{record.id.replace('/', '-')}"


def escaped(text: str) -> str:
    r"""A text that Markdown shows as it is, whichever Markdown: some know no backslash before `<`, `&`, `$`, `|` and `~`.

    >>> print(escaped("$x$ & *more* [here]"))
    &#36;x&#36; &amp; \*more\* \[here\]
    """
    entities = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "|": "&#124;", "~": "&#126;"})
    return re.sub(r"(?<!&)([\\`*_\[\]#])", r"\\\1", text.translate(entities))


def _entry(entry: Entry, docs: str | None) -> str:
    record = entry.record
    code = "".join(f" · [code](<{address}>)" for address in record.code)
    where = f"[{record.id}v{record.version}]({record.address}), {record.published}"
    return "\n\n".join(
        [
            f'### <a id="{anchor(record)}"></a>{escaped(record.title)}',
            f"{escaped(', '.join(record.authors))} · {where}{code}",
            f"**{entry.relevance.score:.1f}** {escaped(entry.relevance.reason)}",
            _badge(entry.status, docs),
            # Inside a paragraph of preformatted text nothing is Markdown, not even an empty line.
            f"<details><summary>Abstract</summary>\n\n<pre>\n{html.escape(record.abstract, quote=False)}\n</pre>\n\n</details>",
        ]
    )


def _badge(status: Status, docs: str | None) -> str:
    """What became of a paper; of an implemented one with its page, its code, its test and what was measured."""
    label = f"**{status.word}**"
    if status.page is None:
        return f"{label}: {escaped(status.reason)}"
    linked = f"[{label}]({docs}{status.page})" if docs is not None else label
    told = {"code": f"`{status.code}`", "test": status.test and f"`{status.test}`", "measured": status.figure and escaped(status.figure)}
    return " · ".join([f"{linked}: {escaped(status.reason)}", *(f"{name} {value}" for name, value in told.items() if value)])


def _part_anchor(part: str) -> str:
    return f"part-{part.replace(' ', '-')}"


def _many(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _json(issue: Issue) -> str:
    papers = [_plain(entry, issue.statuses) for entry in issue.entries]
    return json.dumps({"day": str(issue.day), "threshold": THRESHOLD, "papers": papers}, indent=2, ensure_ascii=False) + "\n"


def _plain(entry: Entry, statuses: Statuses) -> dict[str, Any]:
    found = entry.relevance
    why = {"literal": found.literal, "stems": found.stems, "modules": dict(found.modules), "elsewhere": found.elsewhere}
    return {**plain(entry.record, statuses), "part": entry.part, "score": found.score, "why": found.reason, "matched": why}


def _records(entries: Sequence[Entry]) -> list[Record]:
    return [entry.record for entry in entries]


_WRITERS: dict[Form, Callable[[Issue], str]] = {
    "markdown": markdown,
    "html": page,
    "json": _json,
    "bibtex": lambda issue: "\n".join(bibtex(record) for record in _records(issue.entries)),
    "csv": lambda issue: table(_records(issue.entries), issue.statuses),
}
