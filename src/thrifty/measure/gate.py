"""The quality that a user demands: a result whose perplexity rises by more is marked and kept apart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.base.errors import InputError

METRIC = "perplexity"
_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")


@dataclass(frozen=True)
class Gate:
    """The largest increase of perplexity that passes, as a share of the original's: 0.05 is 5 %."""

    limit: float

    @classmethod
    def parse(cls, value: str | float) -> Gate:
        """`5%` or `0.05`; a share of 1 or more must be written with its sign, lest 5 be taken for 5 %.

        Raises InputError for anything else.
        """
        found = _AMOUNT.fullmatch(str(value)) if isinstance(value, str | float | int) and not isinstance(value, bool) else None
        share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
        if found is None or not math.isfinite(share) or share > 10 or (share >= 1 and not found[2]):
            raise InputError(f"the largest increase of perplexity must be a share, as in 5% or 0.05, and 1000% at most; got {value!r}")
        return cls(share)

    def __str__(self) -> str:
        return f"{METRIC} at most {_percent(self.limit)} above the original's"

    def passes(self, quality: Iterable[Mapping[str, Any]]) -> tuple[bool, str]:
        """(whether the increase is within the limit, a sentence that says so in numbers).

        quality: rows of the certificate. Perplexity that was not measured, or is not finite, does not pass.
        """
        row = next((row for row in quality if row["metric"] == METRIC), None)
        if row is None:
            return False, f"{METRIC} was not measured, so it cannot be told whether it rose by at most {_percent(self.limit)}"
        before, difference = row["before"], row["difference"]
        if not before or difference is None or not math.isfinite(difference) or not math.isfinite(before):
            return False, f"{METRIC} of the result is not a finite number"
        rise = difference / before
        ends = [None if row[end] is None else row[end] / before for end in ("low", "high")]
        between = "" if None in ends else f" (95 % interval {_percent(ends[0])} to {_percent(ends[1])})"
        passed = rise <= self.limit
        said = f"{METRIC} {'rose' if difference >= 0 else 'fell'} by {_percent(abs(rise))}{between}"
        return passed, f"{said}, {'within' if passed else 'more than'} the {_percent(self.limit)} that {'is' if passed else 'was'} allowed"

    def verdict(self, quality: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The gate and its outcome as plain JSON values: {metric, limit, passed, reason}."""
        passed, reason = self.passes(quality)
        return {"metric": METRIC, "limit": self.limit, "passed": passed, "reason": reason}


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if abs(share) < 10 else f"{100 * share:,.0f} %"
