"""Finding papers: a query over all fields, and filters by what a record and its status say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from thrifty.base.errors import InputError
from thrifty.base.method import nearest
from thrifty.papers.query import parse, searchable
from thrifty.papers.record import DOMAINS, FITS, KINDS, MODULES, Record
from thrifty.papers.status import WORDS, Statuses

VOCABULARIES: Mapping[str, Sequence[str]] = {"module": MODULES, "kind": KINDS, "domain": DOMAINS, "fit": FITS, "status": WORDS}
"""What papers can be filtered by, and the words of each."""


@dataclass(frozen=True)
class Filter:
    """Which papers are wanted: for each name of `VOCABULARIES` any of some words, and a window of first dates, both ends included.

    A paper is of a module also where that is one of its further ones. Raises InputError for a word that a vocabulary has not.
    """

    words: Mapping[str, Sequence[str]]
    since: date | None = None
    until: date | None = None

    def __post_init__(self) -> None:
        for name, wanted in self.words.items():
            for word in wanted:
                if word not in VOCABULARIES[name]:
                    options = ", ".join(VOCABULARIES[name])
                    raise InputError(f"--{name} {word}: there is none{nearest(word, VOCABULARIES[name])}; one of {options}")
        if self.since and self.until and self.since > self.until:
            raise InputError(f"--since {self.since} is after --until {self.until}")

    def takes(self, record: Record, statuses: Statuses | None) -> bool:
        """Whether a paper is wanted; statuses may be None where no status is asked for."""
        if (self.since and record.published < self.since) or (self.until and record.published > self.until):
            return False
        return all(set(wanted) & _values(record, name, statuses) for name, wanted in self.words.items())


class Index:
    """Papers made ready for many searches."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.texts = [searchable(record) for record in self.records]

    def search(self, query: str) -> list[Record]:
        """The papers that a query finds, in their order. Raises InputError for a query that cannot be read."""
        return [self.records[number] for number in parse(query).among(self.texts, range(len(self.texts)))]


def counts(records: Iterable[Record], statuses: Statuses) -> dict[str, dict[str, int]]:
    """How many papers there are for each word of each vocabulary; `unsaid` where nobody has said."""
    found = {name: Counter(value for record in records for value in _first(record, name, statuses)) for name in VOCABULARIES}
    return {name: {word: found[name][word] for word in (*VOCABULARIES[name], "unsaid") if found[name][word]} for name in VOCABULARIES}


def _first(record: Record, name: str, statuses: Statuses) -> list[str]:
    """The one value of a paper that is counted."""
    return [statuses.of(record).word] if name == "status" else [getattr(record, name) or "unsaid"]


def _values(record: Record, name: str, statuses: Statuses | None) -> set[str]:
    if name == "status" and statuses is not None:
        return {statuses.of(record).word}
    return {getattr(record, name), *(record.also if name == "module" else ())}
