"""Numbers in words: what is written is the number, and short."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.measure.certificate import Value
from thrifty.report.numbers import MISSING, duration, interval, number, percent, plain, quantity, shrinkage, size, span, words

FINITE = st.floats(-1e300, 1e300)
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def read(text: str) -> float:
    return float(text.replace(",", ""))


@given(FINITE)
def test_a_number_is_written_to_four_digits(value: float) -> None:
    text = number(value)
    assert read(text) == pytest.approx(value, rel=1e-3)
    assert len(text) <= 17
    assert not (text.startswith("-") and read(text) == 0)


@given(st.integers(-(10**15), 10**15))
def test_a_count_is_written_whole(value: int) -> None:
    assert int(number(value).replace(",", "")) == value
    assert re.fullmatch(r"-?\d{1,3}(,\d{3})*", number(value))


@given(st.floats(1000, 1e11))
def test_large_numbers_have_no_exponent(value: float) -> None:
    assert re.fullmatch(r"\d{1,3}(,\d{3})+", number(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.314, "12.31"),
        (0.031, "0.031"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (23456.7, "23,457"),
        (-0.0, "0"),
        (0, "0"),
        (None, MISSING),
        (math.nan, MISSING),
        (-math.inf, MISSING),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.integers(0, 10**15))
def test_a_size_is_below_a_thousand_of_its_unit(count: int) -> None:
    amount, unit = size(count).split()
    assert read(amount) * UNITS[unit] == pytest.approx(count, abs=0.0051 * UNITS[unit] if unit != "B" else 0)
    assert read(amount) < 1000 or unit == "TB"
    assert len(amount) <= 6 or unit == "TB"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_994, "999.99 kB"),
        (999_996, "1.00 MB"),
        (2_900_000, "2.90 MB"),
        (7.5e9, "7.50 GB"),
        (2.5e15, "2,500.00 TB"),
        (None, MISSING),
    ],
)
def test_sizes(count: float | None, text: str) -> None:
    assert size(count) == text


@given(st.floats(0, 1e7))
def test_a_duration_says_the_time(seconds: float) -> None:
    scale = {"s": 1, "min": 60, "h": 3600}
    parts = duration(seconds).split()
    told = sum(read(amount) * scale[unit] for amount, unit in zip(parts[::2], parts[1::2], strict=True))
    assert abs(told - seconds) <= (0.051 if seconds < 59 else 1 if seconds < 3600 else 60)
    assert all(read(amount) < 60 for amount, unit in zip(parts[::2], parts[1::2], strict=True) if unit != "h")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (42.5, "42.5 s"), (59.97, "1 min 0 s"), (192, "3 min 12 s"), (7500, "2 h 5 min"), (None, MISSING)],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(-10, 10), st.integers(0, 4), st.booleans())
def test_a_share_in_percent(value: float, digits: int, sign: bool) -> None:
    text = percent(value, digits, sign)
    assert text.endswith(" %")
    told = float(text.removesuffix(" %"))
    assert told == pytest.approx(100 * value, abs=0.5001 * 10**-digits)
    assert text.startswith("+") == (sign and told >= 0)
    assert not (text.startswith("-") and told == 0)


def test_a_share_that_is_not_known() -> None:
    assert percent(None) == percent(math.nan) == MISSING


def test_intervals() -> None:
    assert interval(Value(value=12.314, low=11.8, high=12.9)) == "12.31 [11.8, 12.9]"
    assert interval(Value(value=12.314)) == interval(Value(value=12.314, low=11.8)) == "12.31"
    assert interval(Value(value=None)) == interval(None) == MISSING
    assert span(0.5, -0.1, 1.1) == "0.5 [-0.1, 1.1]"


@given(st.floats(1, 1e15), st.floats(1, 1e15))
def test_shrinkage_is_told_the_right_way_round(before: float, after: float) -> None:
    text = shrinkage(before, after)
    if text == "the same size":
        assert before == pytest.approx(after, rel=0.006)
    else:
        factor, way = text.split("x ")
        assert float(factor) > 1
        assert float(factor) == pytest.approx(max(before, after) / min(before, after), rel=0.005)
        assert way == ("smaller" if after < before else "larger")


def test_shrinkage_to_nothing_says_nothing() -> None:
    assert shrinkage(100, 0) == shrinkage(0, 100) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING),
        ([], MISSING),
        ({}, MISSING),
        (True, "yes"),
        (1234.5, "1,234"),
        (["a", 2, [False]], "a, 2, no"),
        ({"peak_rss_bytes": 2_000_000, "seconds": 1.25, "free_ram": 3}, "peak rss 2.00 MB, seconds 1.2 s, free ram 3"),
        ({"value": 1.0, "low": 0.5, "high": 1.5}, "1 [0.5, 1.5]"),
        ("as it is", "as it is"),
    ],
)
def test_any_value_in_words(value: object, text: str) -> None:
    assert plain(value) == text


def test_the_end_of_a_name_is_the_unit() -> None:
    assert quantity("peak_rss_bytes", 1500) == "1.50 kB"
    assert quantity("seconds", 75) == "1 min 15 s"
    assert quantity("bytes", True) == "yes"
    assert quantity("rows", 1500) == "1,500"
    assert words("peak_rss_bytes") == "peak rss" and words("bytes") == "bytes"
