"""Papers in the forms that other programs read: BibTeX, CSV, JSON. The page exports the same, and a list (`page/forms.js`)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from thrifty.papers.record import Record
from thrifty.papers.status import Statuses

COLUMNS = ("id", "version", "published", "title", "authors", "name", "kind", "domain", "module", "fit", "status", "address")
"""Of a CSV file."""


def bibtex(record: Record) -> str:
    """One BibTeX entry. Signs that TeX would stumble over are escaped; mathematics and commands of the authors are left."""
    fields = {
        "title": f"{{{_tex(record.title)}}}",
        "author": " and ".join(_tex(author) for author in record.authors),
        "year": str(record.published.year),
        "eprint": record.id,
        "archivePrefix": "arXiv",
        **({"primaryClass": record.categories[0]} if record.categories else {}),
        "url": record.address,
    }
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
    return f"@misc{{{record.id.replace('/', '_')},\n" + ",\n".join(lines) + "\n}\n"


def table(records: Iterable[Record], statuses: Statuses) -> str:
    """A CSV file (RFC 4180) with a row a paper."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for record in records:
        values = {
            **{name: getattr(record, name, None) for name in COLUMNS},
            "authors": "; ".join(record.authors),
            "status": statuses.of(record).word,
        }
        writer.writerow(["" if values[name] is None else values[name] for name in COLUMNS])
    return out.getvalue()


def plain(record: Record, statuses: Statuses) -> dict[str, Any]:
    """A record as plain values, with what became of it."""
    status = statuses.of(record)
    said = {name: value for name, value in vars(status).items() if value not in (None, ())}
    return {**record.to_json(), "abstract": record.abstract, "address": record.address, "status": said}


def short_authors(record: Record) -> str:
    """Up to three names.

    >>> from datetime import date
    >>> short_authors(Record(id="2506.10205", version=1, published=date(2025, 6, 11), title="T", authors=("A", "B", "C", "D"), abstract=""))
    'A, B, C et al.'
    """
    return ", ".join(record.authors[:3]) + (" et al." if len(record.authors) > 3 else "")


def _tex(text: str) -> str:
    """`& % # _` escaped where the authors have not, outside mathematics."""
    pieces = re.split(r"(?<!\\)(\$[^$]*\$)", text)
    return "".join(piece if number % 2 else re.sub(r"(?<!\\)([&%#_])", r"\\\1", piece) for number, piece in enumerate(pieces))
