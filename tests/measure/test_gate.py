"""Gates: how they are written, and what passes."""

from __future__ import annotations

import math

import pytest

from thrifty.base.errors import InputError
from thrifty.measure.gate import Gate


def _rows(before: float | None, difference: float | None, low: float | None = None, high: float | None = None) -> list[dict]:
    row = {"metric": "perplexity", "before": before, "after": None, "difference": difference, "low": low, "high": high}
    return [{"metric": "kl", "before": 0.0, "after": 9.0, "difference": 9.0, "low": 8.0, "high": 10.0}, row]


@pytest.mark.parametrize(
    ("text", "limit", "relative"),
    [
        ("5%", 0.05, True),
        ("5 %", 0.05, True),
        (" 0.5%", 0.005, True),
        ("0.3", 0.3, False),
        ("1e-2", 0.01, False),
        (2, 2.0, False),
        ("0%", 0, True),
    ],
)
def test_percent_is_relative_and_a_number_is_in_units(text, limit: float, relative: bool):
    gate = Gate.parse(text)
    assert gate.limit == pytest.approx(limit)
    assert (gate.relative, gate.metric) == (relative, "perplexity")


@pytest.mark.parametrize("text", ["", "five", "5%%", "-5%", "%", "1,5", "nan", "inf", "1e999", "5 percent"])
def test_anything_else_is_refused(text: str):
    with pytest.raises(InputError, match="must be like 5%"):
        Gate.parse(text)


@pytest.mark.parametrize(
    ("gate", "before", "difference", "passed"),
    [("5%", 20.0, 1.0, True), ("5%", 20.0, 1.001, False), ("5%", 20.0, -3.0, True), ("0.3", 20.0, 0.3, True), ("0.3", 20.0, 0.31, False)],
)
def test_the_limit_itself_still_passes(gate: str, before: float, difference: float, passed: bool):
    found, reason = Gate.parse(gate).passes(_rows(before, difference))
    assert found is passed
    assert ("within" in reason) is passed


def test_the_reason_gives_the_numbers_and_their_interval():
    passed, reason = Gate.parse("5%").passes(_rows(20.0, 1.22, 1.04, 1.4))
    assert not passed
    assert reason == "perplexity rose by 6.1 % (95 % interval 5.2 % to 7 %), more than the 5 % that was allowed"


@pytest.mark.parametrize("rows", [[], _rows(None, 1.0), _rows(20.0, None), _rows(20.0, math.nan), _rows(math.inf, 1.0), _rows(0.0, 1.0)])
def test_what_was_not_measured_does_not_pass(rows: list[dict]):
    passed, reason = Gate.parse("500%").passes(rows)
    assert not passed and reason


def test_other_metrics_can_be_gated():
    verdict = Gate.parse("0.1", "kl").verdict(_rows(20.0, 1.0))
    assert verdict["passed"] is False and verdict["metric"] == "kl" and verdict["limit"] == 0.1
