"""The quality that a user demands: a result that loses more is marked and kept apart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.base.errors import InputError

_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")


@dataclass(frozen=True)
class Gate:
    """The largest increase of a metric that passes.

    limit: 0.05 with `relative` is 5 % of the original's value; without, it is in the metric's own unit.
    """

    limit: float
    relative: bool = True
    metric: str = "perplexity"

    @classmethod
    def parse(cls, text: str | float, metric: str = "perplexity") -> Gate:
        """`5%` is relative to the original, `0.3` in units of the metric.

        Raises InputError for anything else.
        """
        found = _AMOUNT.fullmatch(str(text))
        if found is None or not math.isfinite(float(found[1])):
            raise InputError(f"the largest {metric} increase must be like 5% (of the original's) or 0.3 (in {metric}), got {text!r}")
        amount, percent = float(found[1]), bool(found[2])
        return cls(amount / 100 if percent else amount, percent, metric)

    def __str__(self) -> str:
        return f"{self.metric} at most {self._amount(self.limit)} above the original's"

    def passes(self, quality: Iterable[Mapping[str, Any]]) -> tuple[bool, str]:
        """(whether the increase is within the limit, a sentence that says so in numbers).

        quality: rows of the certificate. A metric that was not measured, or is not finite, does not pass.
        """
        row = next((row for row in quality if row["metric"] == self.metric), None)
        if row is None:
            return False, f"{self.metric} was not measured, so it cannot be told whether it rose by at most {self._amount(self.limit)}"
        before, difference = row["before"], row["difference"]
        if before is None or difference is None or not math.isfinite(difference) or not math.isfinite(before):
            return False, f"{self.metric} of the result is not a finite number"
        if self.relative and before <= 0:
            return False, f"{self.metric} of the original is {before:g}, so a relative increase means nothing; give the limit without %"
        unit = before if self.relative else 1.0
        rise = difference / unit
        ends = [None if row[end] is None else row[end] / unit for end in ("low", "high")]
        between = "" if None in ends else f" (95 % interval {self._amount(ends[0])} to {self._amount(ends[1])})"
        passed = rise <= self.limit
        word = "within" if passed else "more than"
        said = f"{self.metric} {'rose' if difference >= 0 else 'fell'} by {self._amount(abs(rise))}{between}"
        return passed, f"{said}, {word} the {self._amount(self.limit)} that {'is' if passed else 'was'} allowed"

    def verdict(self, quality: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The gate and its outcome as plain JSON values: {metric, limit, relative, passed, reason}."""
        passed, reason = self.passes(quality)
        return {"metric": self.metric, "limit": self.limit, "relative": self.relative, "passed": passed, "reason": reason}

    def _amount(self, value: float) -> str:
        return f"{100 * value:.3g} %" if self.relative else f"{value:.3g}"
