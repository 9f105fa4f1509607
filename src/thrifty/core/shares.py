"""Different shares for the parts of a model whose mean, weighed by size, is given.

    find t with  sum_p n_p min(max(f_t(r_p), low), high) = mean * sum_p n_p,     f_t(r) = t r  or  r + t

Both rise with t, so that what bounds take from some parts goes to the others, and the mean holds after clipping, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

HALVINGS = 200


def scaled_to_mean(relative: Sequence[float], sizes: Sequence[int], mean: float, high: float) -> list[float]:
    """Shares in proportion to `relative` (not negative) from 0 to `high`, and no more than that where the mean itself is higher."""
    parts = torch.tensor(relative, dtype=torch.float64)
    if not bool((parts > 0).any()):
        return [mean] * len(parts)
    return _to_mean(lambda t: t * parts, sizes, mean, 0.0, high, 0.0, 1 / float(parts[parts > 0].min()))


def shifted_to_mean(offsets: Sequence[float], sizes: Sequence[int], mean: float, high: float) -> list[float]:
    """Shares that differ as `offsets` do, from 0 to `high`."""
    parts = torch.tensor(offsets, dtype=torch.float64)
    return _to_mean(lambda t: t + parts, sizes, mean, 0.0, high, -1 - float(parts.max()), 1 - float(parts.min()))


def _to_mean(
    made: Callable[[float], Tensor], sizes: Sequence[int], mean: float, low: float, high: float, least: float, most: float
) -> list[float]:
    """The shares for the t between `least` and `most` that gives the mean, to the last bit as far as the parts allow."""
    weights = torch.tensor(sizes, dtype=torch.float64)
    weights, high = weights / weights.sum(), max(mean, high)
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        if float((made(middle).clamp(low, high) * weights).sum()) < mean:
            least = middle
        else:
            most = middle
    return made(most).clamp(low, high).tolist()


def stretched(scores: Sequence[float]) -> list[float]:
    """Scores stretched so that the least is 0 and the largest 1; all 0.5 where they do not differ. Those that are missing: `filled`."""
    values = torch.tensor(filled(scores), dtype=torch.float64)
    span = float(values.max() - values.min())
    return ((values - values.min()) / span).tolist() if span > 0 else [0.5] * len(values)


def filled(scores: Sequence[float]) -> list[float]:
    """Scores in which what is no finite number is the mean of the others; all 0 where there are none."""
    values = torch.tensor(scores, dtype=torch.float64)
    fine = values.isfinite()
    return torch.where(fine, values, values[fine].mean() if bool(fine.any()) else 0.0).tolist()
