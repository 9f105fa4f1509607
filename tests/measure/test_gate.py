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
    ("value", "limit"),
    [("5%", 0.05), ("5 %", 0.05), (" 0.5%", 0.005), ("0.3", 0.3), ("1e-2", 0.01), (0.05, 0.05), (0, 0.0), ("0%", 0), ("150%", 1.5)],
)
def test_the_limit_is_a_share_of_the_original(value: object, limit: float):
    assert Gate.parse(value).limit == pytest.approx(limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["", "five", "5%%", "-5%", "%", "1,5", "nan", "inf", "1e999", "5 percent", "5", 2, 1.0, "1001%", True, None, -0.1, math.nan]
)
def test_anything_else_is_refused(value: object):
    with pytest.raises(InputError, match="must be a share, as in 5%"):
        Gate.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gate", "before", "difference", "passed"),
    [("5%", 20.0, 1.0, True), ("5%", 20.0, 1.001, False), ("5%", 20.0, -3.0, True), (0.05, 20.0, 1.0, True), (0.05, 20.0, 1.1, False)],
)
def test_the_limit_itself_still_passes(gate: str | float, before: float, difference: float, passed: bool):
    found, reason = Gate.parse(gate).passes(_rows(before, difference))
    assert found is passed
    assert ("within" in reason) is passed


def test_the_reason_gives_the_numbers_and_their_interval():
    passed, reason = Gate.parse("5%").passes(_rows(20.0, 1.22, 1.04, 1.4))
    assert not passed
    assert reason == "perplexity rose by 6.1 % (95 % interval 5.2 % to 7 %), more than the 5 % that was allowed"
    assert "rose by 1,540 %" in Gate.parse("5%").passes(_rows(20.0, 308.0))[1]


@pytest.mark.parametrize("rows", [[], _rows(None, 1.0), _rows(20.0, None), _rows(20.0, math.nan), _rows(math.inf, 1.0), _rows(0.0, 1.0)])
def test_what_was_not_measured_does_not_pass(rows: list[dict]):
    passed, reason = Gate.parse("500%").passes(rows)
    assert not passed and reason


def test_the_verdict_is_plain():
    verdict = Gate.parse("10%").verdict(_rows(20.0, 1.0))
    assert verdict == {"metric": "perplexity", "limit": 0.1, "passed": True, "reason": Gate(0.1).passes(_rows(20.0, 1.0))[1]}
