"""Quality of whole loaded models, alone or against the original, on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.base import events
from thrifty.base.anatomy import Kind
from thrifty.base.errors import InputError
from thrifty.measure.hidden import RowScores, score_classes, score_hidden, summarise_rows
from thrifty.measure.language import WindowScores, causal_targets, score_one, score_windows, summarise, summarise_one

LANGUAGE: tuple[Kind, ...] = ("causal_lm", "masked_lm", "vision_language")


def evaluate(
    model: nn.Module,
    rows: Mapping[str, Tensor],
    *,
    against: nn.Module | None = None,
    kind: Kind = "causal_lm",
    targets: Int[Tensor, "rows length"] | None = None,
    labels: Int[Tensor, "rows"] | None = None,
    batch: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Run the rows through the model, and through the original where `against` is given, and compare.

    rows: what the models are called with, each [rows, ...]. kind: that of the anatomy; it decides what is compared.
    targets: the token that each position predicts, -100 for none (`causal_targets` of input_ids where not given; masked models need them).
    labels: true classes of a classifier's rows. batch: rows at a time.
    Returns what `summarise`, `summarise_one` or `summarise_rows` says, as plain JSON values.
    Raises InputError for rows of different lengths, a masked model without targets, or nothing to compare.
    """
    _check(rows, batch)
    if kind in LANGUAGE:
        targets = _targets(rows, kind) if targets is None else targets
        return _language(model, rows, against, targets, batch, seed)
    if against is None:
        raise InputError("a model without next-token logits is measured against its original; give --against ORIGINAL")
    return _outputs(model, rows, against, labels, batch, seed)


def output_of(outputs: Any) -> tuple[Float[Tensor, "rows ..."], bool]:
    """(what a model's outputs are compared by, whether they are class logits): class logits, else embeddings, else last hidden states,
    else what a diffusion transformer predicts.

    Raises InputError when there is none of these.
    """
    for name in ("logits", "logits_per_image"):
        value = getattr(outputs, name, None)
        if value is not None:
            return value, value.ndim == 2
    for name in ("image_embeds", "last_hidden_state", "pooler_output", "sample"):
        value = getattr(outputs, name, None)
        if value is not None:
            return value, False
    raise InputError(f"{type(outputs).__name__} holds neither logits nor hidden states; this model cannot be compared")


def _language(
    model: nn.Module, rows: Mapping[str, Tensor], against: nn.Module | None, targets: Tensor, batch: int, seed: int
) -> dict[str, Any]:
    parts = []
    for start, part in _batches(rows, batch):
        after = _run(model, part).logits
        wanted = targets[start : start + batch].to(after.device)
        if against is None:
            parts.append(score_one(after, wanted))
        else:
            parts.append(score_windows(_run(against, part).logits.to(after.device), after, wanted))
    scores = WindowScores.joined(parts)
    return summarise_one(scores, seed=seed) if against is None else summarise(scores, seed=seed)


def _outputs(
    model: nn.Module, rows: Mapping[str, Tensor], against: nn.Module, labels: Tensor | None, batch: int, seed: int
) -> dict[str, Any]:
    parts = []
    for start, part in _batches(rows, batch):
        after, classes = output_of(_run(model, part))
        before = output_of(_run(against, part))[0].to(after.device)
        if classes:
            parts.append(score_classes(before, after, None if labels is None else labels[start : start + batch]))
        else:
            mask = part.get("attention_mask")
            fits = mask is not None and mask.shape == after.shape[:2]
            parts.append(score_hidden(before, after, mask if fits else None))
    return summarise_rows(RowScores.joined(parts), seed=seed)


def _run(model: nn.Module, rows: Mapping[str, Tensor]) -> Any:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        return model(**{name: tensor.to(device) for name, tensor in rows.items()})


def _batches(rows: Mapping[str, Tensor], batch: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    count = len(next(iter(rows.values())))
    with events.task("evaluate", count) as advance:
        for start in range(0, count, batch):
            yield start, {name: tensor[start : start + batch] for name, tensor in rows.items()}
            advance(min(start + batch, count), "")


def _targets(rows: Mapping[str, Tensor], kind: Kind) -> Tensor:
    if kind == "masked_lm" or "input_ids" not in rows:
        raise InputError("a masked language model is measured on masked tokens; give the masked rows and their targets")
    return causal_targets(rows["input_ids"], rows.get("attention_mask"))


def _check(rows: Mapping[str, Tensor], batch: int) -> None:
    counts = {name: len(tensor) for name, tensor in rows.items()}
    if not counts or len(set(counts.values())) != 1 or not next(iter(counts.values())):
        raise InputError(f"the rows to measure on must be of one number, at least 1, got {counts}")
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
