"""The last step of the walk: what both models make of the final hidden states, compared row by row."""

from __future__ import annotations

from typing import Any

import torch

from thrifty.base import events
from thrifty.data import Rows
from thrifty.measure.evaluate import LANGUAGE
from thrifty.measure.hidden import RowScores, score_classes, score_hidden, summarise_rows
from thrifty.measure.language import WindowScores, causal_targets, score_windows, summarise
from thrifty.models import Source
from thrifty.pipeline.streams import Streams, batches

LOGITS = 1 << 24
"""Logits of one model held at once, at most, unless one row alone has more."""


def rows_at_once(batch: int, tokens: int, vocabulary: int) -> int:
    """How many rows of `tokens` tokens are scored together: `batch`, or fewer where the vocabulary is large."""
    return max(1, min(batch, LOGITS // max(1, tokens * vocabulary)))


def score(source: Source, rows: Rows, streams: Streams, batch: int, seed: int, original: Source | None = None) -> dict[str, Any]:
    """Figures of the original against the compressed model on the evaluation rows (see `measure.language`, `measure.hidden`).

    original: where it is not the one that `source` was made of. Outputs are made a few rows at a time (see `rows_at_once`), for both models
    one after the other.
    """
    after_shell = source.shell(torch.float32)
    original = source.original if original is None else original
    shells = {"after": after_shell, "before": after_shell if original is source else original.shell(torch.float32)}
    language = source.anatomy.kind in LANGUAGE and ("input_ids" in rows.inputs or rows.targets is not None)
    targets = rows.targets
    if language and targets is None:
        targets = causal_targets(rows.inputs["input_ids"])
    windows: list[WindowScores] = []
    others: list[RowScores] = []
    with events.task("scoring", rows.rows) as advance:
        for start, stop, inputs in batches(dict(rows.inputs), rows_at_once(batch, rows.tokens // rows.rows, source.vocabulary)):
            before, after = (shells[name].finish(inputs, streams.outputs(name, start, stop)) for name in ("before", "after"))
            if language and targets is not None:
                windows.append(score_windows(before, after, targets[start:stop]))
            else:
                labels = None if rows.labels is None else rows.labels[start:stop]
                others.append(score_classes(before, after, labels) if before.ndim == 2 else score_hidden(before, after))
            del before, after  # before the next two are made
            advance(stop, "")
    if windows:
        return summarise(WindowScores.joined(windows), seed=seed)
    return summarise_rows(RowScores.joined(others), seed=seed)
