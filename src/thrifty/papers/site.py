"""The page that searches papers without a network: one file that holds the records, the style and the scripts.

Its parts are in `page/`: `query.js` reads the query language, `forms.js` writes what `references.py` writes, `page.js` shows the papers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from thrifty.base.errors import InputError
from thrifty.base.store import write_bytes
from thrifty.papers.find import VOCABULARIES
from thrifty.papers.record import Record
from thrifty.papers.references import plain
from thrifty.papers.status import Statuses

FILE = "index.html"

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("query.js", "forms.js", "page.js")
_MARK = b'<meta name="generator" content="thrifty">'
_HEAD = 2048
"""Bytes of a page that hold its mark."""


def write_site(
    records: Sequence[Record], statuses: Statuses, out: Path, *, scores: Mapping[str, float] | None = None, docs: str | None = None
) -> dict[str, Any]:
    """Write the page of these papers, `index.html` in the folder `out`: {papers, bytes, file}.

    scores: by id, to sort by. docs: the address that pages of the documentation begin with; without one, methods are named and not linked.
    Raises InputError, before anything is written, where `out` is a file or holds an `index.html` that is not a page of thrifty's.
    """
    path = _place(out)
    content = render(records, statuses, scores, docs).encode()
    write_bytes(path, content)
    return {"papers": len(records), "bytes": len(content), "file": str(path)}


def render(records: Sequence[Record], statuses: Statuses, scores: Mapping[str, float] | None = None, docs: str | None = None) -> str:
    """The page as HTML text, its papers newest first."""
    found = sorted(records, key=lambda record: (record.published, record.id), reverse=True)
    data = {
        "papers": [plain(record, statuses) for record in found],
        "scores": None if scores is None else [scores[record.id] for record in found],
        "docs": docs,
        "vocabularies": VOCABULARIES,
    }
    # No `<` is left, so nothing in a record can end the element that holds the records.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    style = _read("page.css")
    script = "\n".join(map(_read, _SCRIPTS))
    return Template(_read("page.html")).substitute(policy=_policy(style, script), style=style, script=script, data=text)


def _policy(style: str, script: str) -> str:
    """What a browser may do for the page: run this one script, take this one style, and ask no server for anything."""
    taken = {"script-src": f"'{_digest(script)}'", "style-src": f"'{_digest(style)}'", "img-src": "data:"}
    refused = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    return "; ".join(f"{what} {whence}" for what, whence in {**refused, **taken}.items())


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _place(out: Path) -> Path:
    path = out / FILE
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give --out a folder")
    if path.exists() and not (path.is_file() and _MARK in path.read_bytes()[:_HEAD]):
        raise InputError(f"{path} is not a page that thrifty made; give --out another folder")
    return path
