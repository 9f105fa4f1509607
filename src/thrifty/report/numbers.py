"""Numbers as people read them: three or four digits, units, intervals in brackets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.measure.certificate import Value

MISSING = "–"  # noqa: RUF001
BELOW_THOUSAND = 999.995  # what is still below 1000 when written with two digits after the point


def number(value: float | None) -> str:
    """Four digits; from 1000 on whole numbers with thousands separators."""
    if value is None or not math.isfinite(value):
        return MISSING
    if isinstance(value, int) or 999.95 <= abs(value) < 1e12:
        return f"{round(value):,}"
    return f"{value:z.4g}"


def interval(value: Value | None) -> str:
    """`12.31 [11.8, 12.9]`."""
    return MISSING if value is None else span(value.value, value.low, value.high)


def span(value: float | None, low: float | None, high: float | None) -> str:
    """A number with the ends of its interval in brackets, where it has them."""
    if value is None or low is None or high is None:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """0.912 -> 91.2 %; with `sign` also for gains."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:{'+' if sign else ''}z.{digits}f} %"


def size(count: float | None) -> str:
    """Bytes in decimal units, as disks and hubs count them."""
    if count is None:
        return MISSING
    if abs(count) < 999.5:
        return f"{count:z.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if abs(count) < BELOW_THOUSAND:
            return f"{count:.2f} {unit}"
    return f"{count / 1000:,.2f} TB"


def shrinkage(before: float, after: float) -> str:
    """How much smaller the second size is: `2.90x smaller`, `1.05x larger`, `the same size`."""
    if not before or not after:
        return ""
    factor = before / after
    words = f"{factor:.2f}x smaller" if factor >= 1 else f"{1 / factor:.2f}x larger"
    return "the same size" if words.startswith("1.00x") else words


def duration(seconds: float | None) -> str:
    """`42.5 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def plain(value: Any) -> str:
    """Any JSON value in words."""
    if value is None or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        if {"value", "low", "high"} <= value.keys():
            return span(value["value"], value["low"], value["high"])
        return ", ".join(f"{words(key)} {quantity(key, item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)


def quantity(key: str, value: Any) -> str:
    """A value in words, where the end of its name says the unit: `peak_rss_bytes`, `seconds`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("bytes"):
            return size(value)
        if key.endswith("seconds"):
            return duration(value)
    return plain(value)


def words(key: str) -> str:
    """The name of a JSON value as a heading: `peak_rss_bytes` -> `peak rss`."""
    return key.removesuffix("_bytes").replace("_", " ")
