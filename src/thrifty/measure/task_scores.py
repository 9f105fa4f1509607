"""Scores of tasks with their intervals, and the paired difference between two models on the same documents.

Every document is drawn again, whole and for both models at once (see `intervals`). A mean, a perplexity and bits per byte are functions of
sums over documents and have an interval; a metric that is computed over all documents at once (F1, BLEU) has none here. Beside the
difference stand the flips, which it hides: documents that were right and are wrong, and the other way round (Dutta and others (2024),
Accuracy is Not All You Need, arXiv 2407.09141).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.errors import RunError
from thrifty.measure.intervals import Interval, mean_interval, perplexity, perplexity_difference
from thrifty.measure.quality import quality_row


@dataclass(frozen=True)
class Score:
    """One metric of one task or group.

    metric: its name, with the name of lm-eval's filter behind a slash where there is one. value: as lm-eval computes it.
    sums, counts: what each document adds, so that value = sum(sums) / sum(counts), or exp of it where `is_exponent`; float64, None where
    the metric is no such function. documents: what tells the documents apart, in order.
    """

    task: str
    metric: str
    value: float
    documents: tuple[str, ...]
    sums: Float[Tensor, "documents"] | None = None
    counts: Float[Tensor, "documents"] | None = None
    is_exponent: bool = False

    @property
    def name(self) -> str:
        """The metric as the certificate calls it."""
        return f"{self.task}/{self.metric}"

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether every document counts 0 or 1."""
        return (
            self.sums is not None
            and not self.is_exponent
            and bool(((self.sums == 0) | (self.sums == 1)).all() and (self.counts == 1).all())
        )

    def interval(self, seed: int) -> Interval:
        """The value with its interval over documents, or without one where the metric allows none."""
        if self.sums is None or self.counts is None:
            return Interval(self.value)
        return _spread(
            perplexity(self.sums, self.counts, seed=seed) if self.is_exponent else mean_interval(self.sums, self.counts, seed=seed)
        )


def read_scores(loaded: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Score, ...]:
    """The scores in what lm-eval's `evaluate` returned. loaded: the tasks and groups that it ran."""
    tasks = [
        _score(name, task, key, value, found["samples"][name])
        for name, task in loaded["tasks"].items()
        for key, value in _metrics(found["results"][name])
    ]
    groups = [
        _pooled(name, key, value, [score for score in tasks if score.task in members and score.metric == _metric(key)])
        for name, group in loaded["groups"].items()
        for members in [{task.task_name for task in group.get_all_tasks()}]
        for key, value in _metrics(found["results"].get(name, {}))
    ]
    return (*groups, *tasks)


def summarise_tasks(after: Sequence[Score], before: Sequence[Score] | None = None, *, seed: int = 0) -> dict[str, Any]:
    """The scores in figures, as plain JSON values.

    Keys: tasks (rows {task, metric, documents, value, low, high}, with `before` also {right_to_wrong, wrong_to_right}) and, with `before`,
    quality (rows of the certificate, one for each metric that both have).
    Raises RunError when the two did not see the same prompts.
    """
    originals = {score.name: score for score in before or ()}
    pairs = [(originals[score.name], score) for score in after if score.name in originals]
    flips = {score.name: _flips(original, score) for original, score in pairs}
    rows = []
    for score in after:
        interval = score.interval(seed)
        row = {"task": score.task, "metric": score.metric, "documents": len(score.documents), **interval.to_json()}
        rows.append({**row, **flips.get(score.name, {})})
    if before is None:
        return {"tasks": rows}
    differences = [quality_row(score.name, original.value, score.value, _difference(original, score, seed)) for original, score in pairs]
    return {"tasks": rows, "quality": differences}


def _difference(before: Score, after: Score, seed: int) -> Interval:
    """after - before, paired over documents."""
    if before.documents != after.documents:
        raise RunError(f"task {after.task} gave the two models different prompts; it must not draw without a seed")
    if before.sums is None or after.sums is None or after.counts is None:
        return Interval(after.value - before.value)
    if after.is_exponent:
        return _spread(perplexity_difference(before.sums, after.sums, after.counts, seed=seed))
    return _spread(mean_interval(after.sums - before.sums, after.counts, seed=seed))


def _spread(interval: Interval) -> Interval:
    """No interval where all documents are alike: drawing them again shows nothing of what other documents would do."""
    return Interval(interval.value) if interval.low == interval.high else interval


def _flips(before: Score, after: Score) -> dict[str, int | None]:
    if not (before.is_right_or_wrong and after.is_right_or_wrong and before.documents == after.documents):
        return {"right_to_wrong": None, "wrong_to_right": None}
    moved = after.sums - before.sums  # type: ignore[operator]
    return {"right_to_wrong": int((moved < 0).sum()), "wrong_to_right": int((moved > 0).sum())}


# -- what lm-eval says -------------------------------------------------------------------------------------------------


def _metrics(results: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """(`metric,filter`, value) of every metric that is a number."""
    for key, value in results.items():
        metric, comma, _ = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            yield key, float(value)


def _metric(key: str) -> str:
    metric, _, selected = key.partition(",")
    return metric if selected == "none" else f"{metric}/{selected}"


def _score(name: str, task: Any, key: str, value: float, samples: Sequence[Mapping[str, Any]]) -> Score:
    """One metric of a task, with what each document adds where lm-eval's own aggregation is a function of sums."""
    metric, _, selected = key.partition(",")
    seen = [sample for sample in samples if sample["filter"] == selected and metric in sample]
    documents = tuple(f"{sample['doc_id']}:{sample['prompt_hash']}:{sample['target_hash']}" for sample in seen)
    score = Score(name, _metric(key), value, documents)
    form = _form(task.aggregation().get(metric))
    columns = _columns(form, [sample[metric] for sample in seen]) if form else None
    if columns is None:
        return score
    summed = Score(name, score.metric, value, documents, *columns, is_exponent="perplexity" in form)
    return summed if _same(summed) else score


def _form(aggregation: Any) -> str:
    """The name of an aggregation that is a function of sums; lm-eval takes the mean where a task names none."""
    from lm_eval.api.registry import get_aggregation

    if aggregation is None:
        return "mean"
    return next(
        (
            form
            for form in ("mean", "nanmean", "perplexity", "weighted_perplexity", "bits_per_byte")
            if get_aggregation(form) is aggregation
        ),
        "",
    )


def _columns(form: str, values: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """What each document adds to the two sums; None for values that are no numbers."""
    try:
        table = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError):
        return None
    weighted = form in ("weighted_perplexity", "bits_per_byte")
    if table.ndim != 1 + weighted or (weighted and table.shape[1] != 2) or not table.numel():
        return None
    sums, counts = (table[:, 0], table[:, 1]) if weighted else (table, torch.ones_like(table))
    scale = {"mean": 1.0, "nanmean": 1.0, "bits_per_byte": -1 / math.log(2)}.get(form, -1.0)
    return sums * scale, counts


def _pooled(name: str, key: str, value: float, parts: Sequence[Score]) -> Score:
    """A metric of a group: over all its documents, where that is how the group weighs its tasks."""
    documents = tuple(f"{score.task}:{document}" for score in parts for document in score.documents)
    score = Score(name, _metric(key), value, documents)
    if not parts or any(part.sums is None or part.is_exponent for part in parts):
        return score
    sums, counts = torch.cat([part.sums for part in parts]), torch.cat([part.counts for part in parts])  # type: ignore[misc]
    summed = Score(name, score.metric, value, documents, sums, counts)
    return summed if _same(summed) else score


def _same(score: Score) -> bool:
    """Whether the sums give the value that lm-eval computed."""
    mean = score.sums.sum() / score.counts.sum()  # type: ignore[union-attr]
    return math.isclose(float(mean.exp() if score.is_exponent else mean), score.value, rel_tol=1e-6, abs_tol=1e-9)
