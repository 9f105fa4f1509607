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


def test_a_long_task_says_how_far_it_is_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """At the pace since the last line: one that goes on after a stop is not taken for a fast one."""
    now = 0.0
    with events.listening(progress.Lines(lambda: now)):
        with events.task("training", 200, done=100) as advance:
            for step in range(101, 131):
                now += 2
                advance(step, "loss 1.0")
        with events.task("hashing", 4e9, "bytes") as advance:
            now += 40
            advance(1e9)
    lines = ["training (200) ...", "training: 115 of 200, about 2 min 50 s left", "training: 130 of 200, about 2 min 20 s left"]
    assert capsys.readouterr().err.splitlines() == [*lines, "hashing (4.00 GB) ...", "hashing: 1.00 GB of 4.00 GB, about 2 min 0 s left"]


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
