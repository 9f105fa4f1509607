"""Events on standard error: bars where someone looks, lines where a file does."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console

from thrifty.base import events
from thrifty.cli import progress


def work() -> None:
    with events.task("blocks", 2) as advance:
        with events.task("blocks"):
            events.note("inner [note]")
        advance(1, "model.layers.[0]")
        events.warn("careful [now]")


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.drawing():
        work()
    events.note("after")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ["blocks (2) ...", "blocks ...", "inner [note]", "warning: careful [now]"]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "Console", lambda **options: Console(file=sys.stderr, force_terminal=True, highlight=False, width=100))
    with progress.drawing():
        work()
    printed = capsys.readouterr()
    assert printed.out == ""
    for word in ("blocks", "inner [note]", "careful [now]"):
        assert word in printed.err


def test_a_failure_ends_the_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="stop"), progress.drawing():
        raise ValueError("stop")
    events.note("unheard")
    assert "unheard" not in capsys.readouterr().err
