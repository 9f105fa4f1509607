"""Where records and digests lie: those that come with the package, and those of the user, who may also replace the former.

A folder holds `records/2506/2506.10205.json`, a file a paper, and `digests/2025-06-13.json`, the ids of a digest in their order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from thrifty.base.errors import InputError
from thrifty.base.events import task
from thrifty.base.lock import alone
from thrifty.base.store import write_bytes, write_files
from thrifty.papers.classic import Digest, title_of
from thrifty.papers.record import Record, read_record

SHIPPED = Path(__file__).parent / "shipped"


def own_folder() -> Path:
    """The user's records: $THRIFTY_PAPERS, or `thrifty/papers` among the user's data."""
    named = os.environ.get("THRIFTY_PAPERS")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(named) if named else Path(data) / "thrifty" / "papers"


@dataclass(frozen=True)
class Added:
    """What an addition did: ids of new, of changed and of known papers."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    def __add__(self, other: Added) -> Added:
        return Added(self.new + other.new, self.changed + other.changed, self.known + other.known)


class Library:
    """Records and digests of two folders: the shipped one is read, the user's own is read and written."""

    def __init__(self, own: Path, shipped: Path = SHIPPED) -> None:
        self.own = own
        self.folders = (shipped, own)

    @cached_property
    def records(self) -> dict[str, Record]:
        """Every record by id, newest first. Raises InputError that names file, line and field of a bad one."""
        found: dict[str, Record] = {}
        for folder in self.folders:
            for path in sorted(folder.glob("records/*/*.json")):
                record = read_record(path)
                if path != self.path_of(record.id, folder):
                    raise InputError(f"{path}, id: it says {record.id}, but a record of that id lies in {self.path_of(record.id, folder)}")
                found[record.id] = record
        ordered = sorted(found.values(), key=lambda record: (record.published, record.id), reverse=True)
        return {record.id: record for record in ordered}

    @cached_property
    def digests(self) -> dict[date, tuple[str, ...]]:
        """The ids of every digest by its day, oldest first."""
        found = {}
        for folder in self.folders:
            for path in sorted(folder.glob("digests/*.json")):
                found[_day_of(path)] = tuple(self._ids(path))
        return dict(sorted(found.items()))

    def digest(self, day: date) -> Digest:
        """The digest of a day. Raises InputError where there is none."""
        if day not in self.digests:
            known = ", ".join(map(str, self.digests)) or "none"
            raise InputError(f"there is no digest of {day}; there are: {known}; `thrifty papers import FILE.md` adds one")
        return Digest(day, tuple(self.records[name] for name in self.digests[day]))

    def record(self, name: str) -> Record:
        """The record of an id, with or without version, of a short name or of a whole title.

        Raises InputError where there is none, or several.
        """
        word = name.strip().removeprefix("arXiv:").rsplit("/abs/", 1)[-1]
        plain = word.rsplit("v", 1)[0] if word[-1:].isdigit() else word
        if plain in self.records:
            return self.records[plain]
        wanted = name.strip().lower()
        found = [record for record in self.records.values() if wanted in ((record.name or "").lower(), record.title.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"several papers are called {name!r}: {', '.join(record.id for record in found)}; name one by its id")
        raise InputError(f"there is no paper {name!r} in the library; `thrifty papers search WORDS` finds by words")

    def add(self, records: Iterable[Record]) -> Added:
        """Keep records. One that is known keeps what a reader has said of it, and its title's colon; an older version changes nothing."""
        new, changed, known, written = [], [], [], []
        for record in records:
            before = self.records.get(record.id)
            after = record if before is None else _newer(before, record)
            if after == before:
                known.append(record.id)
            else:
                (new if before is None else changed).append(record.id)
                written.append(after)
        with alone(self.own), task("records", len(written)) as advance:
            write_files({self.path_of(record.id, self.own): record.to_text() for record in written}, advance)
        if written:
            self.__dict__.pop("records", None)
        return Added(tuple(new), tuple(changed), tuple(known))

    def add_digest(self, digest: Digest) -> Added:
        """Keep a digest and its records; the digest last, so that one that is there is whole."""
        added = self.add(digest.records)
        ids = tuple(record.id for record in digest.records)
        if self.digests.get(digest.day) != ids:
            write_bytes(self.own / "digests" / f"{digest.day}.json", _text({"day": str(digest.day), "papers": list(ids)}))
            self.__dict__.pop("digests", None)
        return added

    @staticmethod
    def path_of(identifier: str, folder: Path) -> Path:
        """Where the record of an id lies: by the month that ids begin with."""
        name = identifier.replace("/", "_")
        month = name[-7:-3] if "_" in name else name[:4]
        return folder / "records" / month / f"{name}.json"

    def _ids(self, path: Path) -> Sequence[str]:
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))["papers"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
            raise InputError(f"{path}, line {line}, papers: there is no list of ids; remove the file and import the digest again") from None
        for name in ids:
            if name not in self.records:
                raise InputError(f"{path}, papers: the library holds no record of {name}; import the digest again")
        return ids


def _newer(before: Record, after: Record) -> Record:
    """What is known of a paper once `after` has come in."""
    if after.version < before.version:
        return before
    read = {key: getattr(before, key) for key in _SAID_BY_READERS}
    title = before.title if title_of(before) == after.title else after.title
    kept = {key: getattr(after, key) or getattr(before, key) for key in ("updated", "categories")}
    return after.model_copy(update={**read, **kept, "title": title})


_SAID_BY_READERS = ("name", "kind", "domain", "module", "also", "fit", "core", "headline", "reason", "builds_on")


def _day_of(path: Path) -> date:
    try:
        return date.fromisoformat(path.stem)
    except ValueError:
        raise InputError(f"{path}: the name of a digest must be its day, YYYY-MM-DD; rename or remove the file") from None


def _text(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
