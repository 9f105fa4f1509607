"""What became of a paper: derived from the methods that there are, never typed by hand.

The methods come from whoever calls; this package knows none of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thrifty.base.method import Method
from thrifty.papers.record import Record

Word = Literal["implemented", "planned", "elsewhere", "unread"]
WORDS: tuple[Word, ...] = ("implemented", "planned", "elsewhere", "unread")

MEASURED = Path(__file__).parent / "measured.json"
"""{method: {figure, test}}: what a benchmark found, and the file that checks the method; written by `bench/methods.py`."""


@dataclass(frozen=True)
class Status:
    """word: `implemented`, a method names the paper, and not as a part of it; `planned`, it fits; `elsewhere`, it does not; `unread`,
    nobody has judged it.

    reason: why. Of an implemented one: methods, their names; page, where the documentation shows the first; code, its module; test, the
    file that checks it; figure, what was measured of it.
    """

    word: Word
    reason: str
    methods: tuple[str, ...] = ()
    page: str | None = None
    code: str | None = None
    test: str | None = None
    figure: str | None = None


class Statuses:
    """The status of every paper, given the methods and what was measured of them."""

    def __init__(self, methods: Iterable[type[Method]], measured: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.measured = json.loads(MEASURED.read_text()) if measured is None and MEASURED.exists() else measured or {}
        self.by_paper: dict[str, list[type[Method]]] = {}
        for method in methods:
            if method.paper is not None and method.paper.arxiv:
                self.by_paper.setdefault(method.paper.arxiv, []).append(method)

    def of(self, record: Record) -> Status:
        """The status of one paper."""
        named = self.by_paper.get(record.id, ())
        found = [method for method in named if method.paper is not None and not method.paper.part]
        parts = dict.fromkeys(method.paper.part for method in named if method.paper is not None and method.paper.part)
        if not found and parts:
            return Status("planned", f"of it there is so far: {'; '.join(map(str, parts))}", tuple(method.name for method in named))
        if found:
            names = tuple(method.name for method in found)
            said = next((self.measured[name] for name in names if name in self.measured), {})
            reason = f"the method {names[0]} names it" if len(names) == 1 else f"the methods {', '.join(names)} name it"
            where = f"methods/#{names[0]}"
            return Status("implemented", reason, names, where, found[0].__module__, said.get("test"), said.get("figure"))
        if record.fit is None:
            return Status("unread", "nobody has judged it yet")
        word: Word = "planned" if record.fit in ("core", "near") else "elsewhere"
        return Status(word, record.reason or f"its fit is {record.fit!r}")

    def counts(self, records: Iterable[Record]) -> dict[str, int]:
        """How many papers have each status."""
        found = Counter(self.of(record).word for record in records)
        return {word: found[word] for word in WORDS}
