"""Confidence intervals by the bootstrap over windows.

Every figure here is a function of sums over windows: perplexity is exp(sum nll / sum tokens), a KL divergence is sum kl / sum tokens.
Windows are drawn with replacement, whole and for both models at once, so that a comparison is paired. Percentiles of a bootstrap are too
narrow for few windows; they are widened to the quantiles at which a Student t interval would be right for a mean (the expanded percentile
interval of Hesterberg (2015), What Teachers Should Know about the Bootstrap, arXiv 1411.5279).

Windows of one document resemble each other, so an interval speaks of other windows of the same text, not of other texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.errors import InputError

RESAMPLES = 2000
CONFIDENCE = 0.95
_ELEMENTS = 2**22

Statistic = Callable[[Float[Tensor, "... columns"]], Float[Tensor, "..."]]


@dataclass(frozen=True)
class Interval:
    """A measured value and the ends of its confidence interval; `low` and `high` are None where one window allows none."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """The interval as plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def contains(self, value: float) -> bool:
        """Whether `value` lies inside; without an interval every value does."""
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


def bootstrap(
    columns: Float[Tensor, "windows columns"],
    statistic: Statistic,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of `statistic(columns.sum(0))` when the windows are drawn again.

    columns: per-window sums, any float type; computed in float64. statistic: maps sums [..., columns] to values [...].
    Raises InputError without a window.
    """
    if columns.ndim != 2 or columns.shape[0] == 0:
        raise InputError(f"an interval needs at least one window, got columns of shape {list(columns.shape)}")
    columns = columns.detach().to("cpu", torch.float64)
    value = float(statistic(columns.sum(0)))
    windows = columns.shape[0]
    if windows == 1 or not math.isfinite(value):
        return Interval(value)
    drawn = statistic(resampled_sums(columns, resamples, seed))
    tail = _tail(windows, confidence)
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high) if math.isfinite(low) and math.isfinite(high) else Interval(value)


def resampled_sums(columns: Float[Tensor, "windows columns"], resamples: int, seed: int) -> Float[Tensor, "resamples columns"]:
    """Sums over `windows` windows drawn with replacement, `resamples` times; equal seeds draw equal windows."""
    windows = columns.shape[0]
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _ELEMENTS // windows)
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = torch.randint(windows, (rows, windows), generator=generator)
        drawn += windows * torch.arange(rows)[:, None]
        counts = torch.bincount(drawn.flatten(), minlength=rows * windows).view(rows, windows)
        parts.append(counts.to(torch.float64) @ columns)
    return torch.cat(parts)


def mean_interval(sums: Float[Tensor, "windows"], counts: Float[Tensor, "windows"] | None = None, **settings: float) -> Interval:
    """sum(sums) / sum(counts): the mean over what the windows hold; without counts every window counts once."""
    counts = torch.ones_like(sums) if counts is None else counts
    return bootstrap(_stack(sums, counts), lambda total: total[..., 0] / total[..., 1], **settings)


def ratio_interval(numerator: Float[Tensor, "windows"], denominator: Float[Tensor, "windows"], **settings: float) -> Interval:
    """sum(numerator) / sum(denominator), both from the same windows (paired)."""
    return mean_interval(numerator, denominator, **settings)


def perplexity(nll: Float[Tensor, "windows"], tokens: Float[Tensor, "windows"], **settings: float) -> Interval:
    """exp(sum nll / sum tokens); nll in nats."""
    return bootstrap(_stack(nll, tokens), lambda total: (total[..., 0] / total[..., 1]).exp(), **settings)


def perplexity_ratio(
    before: Float[Tensor, "windows"], after: Float[Tensor, "windows"], tokens: Float[Tensor, "windows"], **settings: float
) -> Interval:
    """Perplexity after / before on the same windows (paired)."""
    return bootstrap(_stack(after - before, tokens), lambda total: (total[..., 0] / total[..., 1]).exp(), **settings)


def perplexity_difference(
    before: Float[Tensor, "windows"], after: Float[Tensor, "windows"], tokens: Float[Tensor, "windows"], **settings: float
) -> Interval:
    """Perplexity after - before on the same windows (paired)."""

    def difference(total: Tensor) -> Tensor:
        return (total[..., 1] / total[..., 2]).exp() - (total[..., 0] / total[..., 2]).exp()

    return bootstrap(_stack(before, after, tokens), difference, **settings)


def _stack(*columns: Tensor) -> Tensor:
    return torch.stack([column.to(torch.float64) for column in columns], dim=1)


def _tail(windows: int, confidence: float) -> float:
    """Share of resamples left out at each end: Phi(-sqrt(n / (n - 1)) t), t the Student quantile with n - 1 degrees of freedom."""
    quantile = student_quantile((1 + confidence) / 2, windows - 1)
    return NormalDist().cdf(-math.sqrt(windows / (windows - 1)) * quantile)


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution for 0.5 <= probability < 1: closed forms for 1 and 2 degrees, else a series in 1 / degrees.

    The series is Abramowitz and Stegun (1964) 26.7.5; its relative error at 0.975 is below 1 % from 3 degrees on and below 1e-4 from 7 on.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))
