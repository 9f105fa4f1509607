"""What a model without next-token logits lost: the relative error of its output, and for classifiers their agreement.

relative_error = sum ||before - after||^2 / sum ||before||^2      over the rows (the convention of the layers' relative_error)
kl = mean over rows of sum_c p(c) (ln p(c) - ln q(c)), in nats    agreement = share of rows given the same class
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.measure.intervals import Interval, mean_interval, ratio_interval
from thrifty.measure.language import IGNORED, score_windows
from thrifty.measure.quality import quality_row


@dataclass(frozen=True)
class RowScores:
    """Sums per row, float64 [rows]: squared norm of the difference, squared norm of the original output.

    Classifiers have more: kl in nats, agreements; and where the true class is known, right_before and right_after (else NaN).
    """

    error: Float[Tensor, "rows"]
    norm: Float[Tensor, "rows"]
    kl: Float[Tensor, "rows"]
    agreements: Float[Tensor, "rows"]
    right_before: Float[Tensor, "rows"]
    right_after: Float[Tensor, "rows"]

    @classmethod
    def joined(cls, parts: Iterable[RowScores]) -> RowScores:
        """All rows in the order of the parts."""
        parts = list(parts)
        if not parts:
            return cls(*(torch.zeros(0, dtype=torch.float64) for _ in fields(cls)))
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def score_hidden(
    before: Float[Tensor, "rows ..."], after: Float[Tensor, "rows ..."], attention_mask: Int[Tensor, "rows length"] | None = None
) -> RowScores:
    """Compare outputs of any shape, row by row; attention_mask leaves padded positions [rows, length] out.

    Raises InputError when the shapes differ.
    """
    if before.shape != after.shape:
        raise InputError(
            f"the two models give outputs of different shapes, {list(before.shape)} and {list(after.shape)}; they do not compare"
        )
    error, norm = (before.float() - after.float()).square(), before.float().square()
    if attention_mask is not None:
        real = attention_mask.to(error.device, torch.bool)[(..., *([None] * (error.ndim - 2)))]
        error, norm = torch.where(real, error, 0.0), torch.where(real, norm, 0.0)
    sums = [part.flatten(1).sum(-1, dtype=torch.float64).cpu() for part in (error, norm)]
    nothing = torch.full_like(sums[0], torch.nan)
    return RowScores(*sums, nothing, nothing, nothing, nothing)


def score_classes(
    before: Float[Tensor, "rows classes"], after: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"] | None = None
) -> RowScores:
    """Compare class logits row by row; labels are the true classes, where known.

    Raises InputError when the shapes differ, or a label is no class.
    """
    outputs = score_hidden(before, after)
    targets = torch.zeros(len(before), dtype=torch.long, device=before.device) if labels is None else labels.to(before.device)
    if bool((targets == IGNORED).any()):
        raise InputError(f"a label of {IGNORED} is no class; give every row its class, or no labels")
    tokens = score_windows(before[:, None], after[:, None], targets[:, None])
    right = [torch.full_like(tokens.kl, torch.nan)] * 2 if labels is None else [tokens.right_before, tokens.right_after]
    return RowScores(outputs.error, outputs.norm, tokens.kl, tokens.agreements, *right)


def summarise_rows(scores: RowScores, *, seed: int = 0) -> dict[str, Any]:
    """The scores in figures, each with its interval over rows, as plain JSON values.

    Keys: rows, relative_error, quality; for classifiers also kl, top1_agreement, and with labels accuracy {before, after}.
    Raises InputError when there is no row.
    """
    if not scores.error.numel():
        raise InputError("no row was compared; give at least one row to measure on")
    relative = Interval(0.0, 0.0, 0.0) if not float(scores.norm.sum()) else ratio_interval(scores.error, scores.norm, seed=seed)
    found: dict[str, Any] = {"rows": int(scores.error.numel()), "relative_error": relative.to_json()}
    rows = [quality_row("output_relative_error", 0.0, relative.value, relative)]
    if not bool(scores.agreements.isnan().any()):
        kl, agreement = mean_interval(scores.kl, seed=seed), mean_interval(scores.agreements, seed=seed)
        change = mean_interval(scores.agreements - 1, seed=seed)
        found |= {"kl": kl.to_json(), "top1_agreement": agreement.value}
        rows += [quality_row("kl", 0.0, kl.value, kl), quality_row("top1_agreement", 1.0, agreement.value, change)]
    if not bool(scores.right_before.isnan().any()):
        before, after = mean_interval(scores.right_before, seed=seed), mean_interval(scores.right_after, seed=seed)
        found["accuracy"] = {"before": before.to_json(), "after": after.to_json()}
        rows.append(quality_row("accuracy", before.value, after.value, mean_interval(scores.right_after - scores.right_before, seed=seed)))
    return found | {"quality": rows}
