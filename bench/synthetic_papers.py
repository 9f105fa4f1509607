"""Records as long and as varied as real ones, made from the words of the shipped papers."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from thrifty.papers.library import SHIPPED, Library
from thrifty.papers.record import DOMAINS, FITS, KINDS, MODULES, Record

FIRST = date(2007, 4, 1)
A_MONTH = 90
"""Papers of one month: ids hold year, month and number."""


def records(count: int, seed: int = 0) -> list[Record]:
    """So many records; equal counts and seeds give equal records."""
    chance = random.Random(seed)
    shipped = list(Library(Path("none"), SHIPPED).records.values())
    return [_record(number, shipped, chance) for number in range(count)]


def _record(number: int, shipped: Sequence[Record], chance: random.Random) -> Record:
    one, other = chance.sample(shipped, 2)
    year, month = divmod(FIRST.year * 12 + FIRST.month - 1 + number // A_MONTH, 12)
    day = date(year, month + 1, 1) + timedelta(days=number % A_MONTH % 28)
    names = [author for record in chance.sample(shipped, 3) for author in record.authors]
    return Record(
        id=f"{year % 100:02}{month + 1:02}.{number % A_MONTH:05}",
        version=chance.randint(1, 4),
        published=day,
        title=" ".join(_mixed(one.title, other.title, chance)),
        authors=tuple(chance.sample(names, min(len(one.authors), len(names)))),
        abstract=textwrap.fill(" ".join(_mixed(one.abstract, other.abstract, chance)), 80, break_long_words=False, break_on_hyphens=False),
        **(_said(one, number, chance) if number % 10 else {}),  # a tenth that nobody has read
    )


def _said(one: Record, number: int, chance: random.Random) -> dict[str, Any]:
    """What a reader says of a paper."""
    fit = chance.choice(FITS)
    module = chance.choice(MODULES) if fit in ("core", "near") else None
    said = {"core": one.core, "headline": one.headline, "reason": one.reason, "builds_on": one.builds_on}
    return {
        **said,
        "name": f"{one.label.split()[0]}-{number}",
        "kind": chance.choice(KINDS),
        "domain": chance.choice(DOMAINS),
        "module": module,
        "fit": fit,
    }


def _mixed(one: str, other: str, chance: random.Random) -> list[str]:
    """As many words as `one` has, in runs of a few from either text."""
    sources, found = (one.split(), other.split()), []
    while len(found) < len(sources[0]):
        source = chance.choice(sources)
        start = chance.randrange(len(source))
        found += source[start : start + chance.randint(2, 9)]
    return found[: len(sources[0])]
