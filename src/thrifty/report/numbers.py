"""Numbers as people read them: three or four digits, units, intervals in brackets."""

from __future__ import annotations

import math
from typing import Any

from thrifty.measure.certificate import Value

MISSING = "–"  # noqa: RUF001


def number(value: float | None) -> str:
    """Four digits; whole numbers with thousands separators."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:.4g}"


def interval(value: Value | None) -> str:
    """`12.31 [11.8, 12.9]`."""
    if value is None or value.value is None:
        return MISSING
    return (
        number(value.value)
        if value.low is None or value.high is None
        else f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"
    )


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """0.912 -> 91.2 %; with `sign` also for gains."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:{'+' if sign else ''}.{digits}f} %"


def size(count: float | None) -> str:
    """Bytes in decimal units, as disks and hubs count them."""
    if count is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float | None) -> str:
    """`42.5 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plain(value: Any) -> str:
    """Any JSON value in words."""
    if value is None or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return str(value)
