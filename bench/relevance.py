"""How well the relevance score tells `core` and `near` papers of the shipped week from the rest, beside a literal filter.

Usage: python bench/relevance.py            (writes bench/results/relevance.json)

The score has one number that is set on data, its threshold. For each of five folds it is set on the other four: of the thresholds that lose
no core paper there, the one of highest F1, the lowest of equals. The terms of `relevance.yaml` were written by readers of this week; a
later week is the test of those.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from thrifty.papers.fetch import read_query
from thrifty.papers.library import SHIPPED, Library
from thrifty.papers.record import Record
from thrifty.papers.relevance import THRESHOLD, Judge

FOLDS = 5
HERE = Path(__file__).parent


def main() -> None:
    records = list(Library(Path("nowhere"), SHIPPED).records.values())
    judge = Judge()
    scores = {record.id: judge.of(record).score for record in records}
    chosen = {record.id for record in records if scores[record.id] >= THRESHOLD}
    shuffled = sorted(records, key=lambda record: record.id)
    random.Random(0).shuffle(shuffled)
    folds = [shuffled[start::FOLDS] for start in range(FOLDS)]
    thresholds = [threshold([record for record in shuffled if record not in fold], scores) for fold in folds]
    held_out = {record.id for fold, limit in zip(folds, thresholds, strict=True) for record in fold if scores[record.id] >= limit}
    summary = {
        "papers": len(records),
        "literal filter": quality(records, {record.id for record in records if literal(record)}),
        "score at the default threshold": {"threshold": THRESHOLD, **quality(records, chosen)},
        "score, five folds": {"thresholds": thresholds, **quality(records, held_out)},
        "threshold by the same rule on all": threshold(records, scores),
    }
    path = HERE / "results" / "relevance.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def literal(record: Record) -> bool:
    """Whether the abstract holds a key word and a background word as they are written, as later weekly scripts ask."""
    query = read_query(None)
    return all(any(word in record.abstract for word in words) for words in (query.key, query.background))


def quality(records: Iterable[Record], chosen: Collection[str]) -> dict[str, Any]:
    """Precision and recall of `core or near`, F1, and which core papers were lost."""
    wanted = {record.id for record in records if record.fit in ("core", "near")}
    hits = len(wanted & set(chosen))
    lost = [record.label for record in records if record.fit == "core" and record.id not in chosen]
    return {
        "kept": len(chosen),
        "precision": hits / len(chosen) if chosen else 0.0,
        "recall": hits / len(wanted),
        "f1": 2 * hits / (len(chosen) + len(wanted)),
        "core_lost": lost,
    }


def threshold(records: Collection[Record], scores: dict[str, float]) -> float:
    """Of the thresholds that lose no core paper of these, the one of highest F1."""
    options = []
    for limit in sorted(set(scores.values())):
        found = quality(records, {record.id for record in records if scores[record.id] >= limit})
        if not found["core_lost"]:
            options.append((found["f1"], -limit))
    return -max(options)[1]


if __name__ == "__main__":
    main()
