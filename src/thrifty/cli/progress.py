"""Events drawn on standard error: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from thrifty.base.events import Event, listening
from thrifty.report.numbers import duration, number, size

SILENCE = 30.0
"""Seconds after which a task that goes on says so again in a log."""


@contextmanager
def drawing() -> Iterator[None]:
    """Draw every event that is announced inside the `with` block."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        with listening(Lines()):
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Amounts(""), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, TextColumn("{task.fields[message]}", style="dim"), console=console, transient=True)
    with progress, listening(_Bars(progress)):
        yield


def amount(count: float, unit: str) -> str:
    """How much of a task: bytes as bytes, everything else as numbers."""
    return size(count) if unit == "bytes" else number(count)


@dataclass
class _Said:
    """When something was last said of a task under way, and how much was done by then."""

    at: float
    done: float


class Lines:
    """Notes and warnings as lines; a task as a line when it begins, and where it takes long again, with the time left at the pace since."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self.tasks: dict[str, list[_Said]] = {}

    def __call__(self, event: Event) -> None:
        under_way, now = self.tasks.setdefault(event.task, []), self.clock()
        if event.kind == "begin":
            under_way.append(_Said(now, event.done))
            self._say(f"{event.task} ({amount(event.total, event.unit)}) ..." if event.total else f"{event.task} ...")
        elif event.kind == "advance" and under_way and event.total and now - under_way[-1].at >= SILENCE:
            self._go_on(event, under_way[-1], now)
        elif event.kind == "end" and under_way:
            under_way.pop()
        elif event.kind in ("note", "warning"):
            self._say(f"warning: {event.message}" if event.kind == "warning" else event.message)

    def _go_on(self, event: Event, before: _Said, now: float) -> None:
        if event.done > before.done:
            left = (now - before.at) / (event.done - before.done) * (event.total - event.done)
            done, total = (amount(count, event.unit) for count in (event.done, event.total))
            self._say(f"{event.task}: {done} of {total}, about {duration(left)} left")
            before.at, before.done = now, event.done

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Amounts(TextColumn):
    """`3/16`, or `1.20 GB/4.00 GB`."""

    def render(self, task: Task) -> Text:
        done = amount(task.completed, task.fields["unit"])
        return Text(done if task.total is None else f"{done}/{amount(task.total, task.fields['unit'])}", style="progress.download")


class _Bars:
    """One bar for each task that is under way; tasks of one name may be nested."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bars: dict[str, list[TaskID]] = {}

    def __call__(self, event: Event) -> None:
        under_way = self.bars.setdefault(event.task, [])
        if event.kind == "begin":
            known = {"total": event.total or None, "completed": event.done, "message": "", "unit": event.unit}
            under_way.append(self.progress.add_task(escape(event.task), **known))
        elif event.kind == "advance" and under_way:
            self.progress.update(under_way[-1], completed=event.done, message=escape(event.message))
        elif event.kind == "end" and under_way:
            self.progress.remove_task(under_way.pop())
        elif event.kind == "note":
            self.progress.console.print(escape(event.message))
        elif event.kind == "warning":
            self.progress.console.print(f"[yellow]warning:[/yellow] {escape(event.message)}")
