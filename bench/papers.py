"""10,000 records: importing them, opening the library, searching.

Usage: python bench/papers.py            (writes bench/results/papers.json)
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from synthetic_papers import records

from thrifty.measure.hardware import hardware
from thrifty.papers import classic
from thrifty.papers.find import Index
from thrifty.papers.library import Library

COUNT, REPEATS = 10_000, 7
QUERIES = (
    "quantization",
    "a",
    "nothing-like-it",
    '"low-bit" -video',
    "sparse OR kv",
    "(pruning OR sparsity) NOT attention",
    '"large language models" edge',
)


def main() -> None:
    found = records(COUNT)
    with tempfile.TemporaryDirectory() as folder:
        digest = Path(folder) / "week.md"
        digest.write_text(classic.write(classic.Digest(date(2026, 1, 1), tuple(found))))
        place = (Path(folder) / "own", Path(folder) / "none")
        importing = seconds(lambda: Library(*place).add_digest(classic.read(digest.read_text(), digest)))
        library = Library(*place)
        opening = seconds(lambda: library.records)
        indexing = seconds(lambda: Index(library.records.values()))
        index = Index(library.records.values())
        searches = {query: statistics.median(seconds(lambda query=query: index.search(query)) for _ in range(REPEATS)) for query in QUERIES}
    summary = {
        "hardware": hardware(),
        "records": COUNT,
        "repeats": REPEATS,
        "import_seconds": importing,
        "open_seconds": opening,
        "index_seconds": indexing,
        "search_seconds": searches,
    }
    path = Path(__file__).parent / "results" / "papers.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
