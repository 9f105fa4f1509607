"""A row of the certificate's `quality`: one metric before and after, and the difference with its interval."""

from __future__ import annotations

from typing import Any

from thrifty.measure.intervals import Interval


def quality_row(metric: str, before: float | None, after: float | None, difference: Interval) -> dict[str, Any]:
    """{metric, before, after, difference, low, high}; low and high bound the difference, paired over windows or rows."""
    return {
        "metric": metric,
        "before": before,
        "after": after,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
    }
