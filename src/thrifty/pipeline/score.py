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


def score(source: Source, rows: Rows, streams: Streams, batch: int, seed: int) -> dict[str, Any]:
    """Figures of the original against the compressed model on the evaluation rows (see `measure.language`, `measure.hidden`).

    Outputs are made `batch` rows at a time, for both models one after the other.
    """
    shell = source.shell(torch.float32)
    language = source.anatomy.kind in LANGUAGE and ("input_ids" in rows.inputs or rows.targets is not None)
    targets = rows.targets
    if language and targets is None:
        targets = causal_targets(rows.inputs["input_ids"])
    windows: list[WindowScores] = []
    others: list[RowScores] = []
    with events.task("scoring", rows.rows) as advance:
        for start, stop, inputs in batches(dict(rows.inputs), batch):
            before, after = (shell.finish(inputs, streams.outputs(name, start, stop)) for name in ("before", "after"))
            if language and targets is not None:
                windows.append(score_windows(before, after, targets[start:stop]))
            else:
                others.append(score_classes(before, after) if before.ndim == 2 else score_hidden(before, after))
            advance(stop, "")
    if windows:
        return summarise(WindowScores.joined(windows), seed=seed)
    return summarise_rows(RowScores.joined(others), seed=seed)
