"""Events drawn on standard error: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from thrifty.base.events import Event, listening


@contextmanager
def drawing() -> Iterator[None]:
    """Draw every event that is announced inside the `with` block."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        with listening(_log):
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TextColumn("{task.fields[message]}", style="dim"), console=console, transient=True)
    with progress, listening(_Bars(progress)):
        yield


def _log(event: Event) -> None:
    """Notes and warnings as lines; a task as a line when it begins."""
    if event.kind in ("note", "warning"):
        mark = "warning: " if event.kind == "warning" else ""
        print(f"{mark}{event.message}", file=sys.stderr, flush=True)
    elif event.kind == "begin":
        print(f"{event.task} ..." if not event.total else f"{event.task} ({event.total:g}) ...", file=sys.stderr, flush=True)


class _Bars:
    """One bar for each task that is under way; tasks of one name may be nested."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bars: dict[str, list[TaskID]] = {}

    def __call__(self, event: Event) -> None:
        under_way = self.bars.setdefault(event.task, [])
        if event.kind == "begin":
            under_way.append(self.progress.add_task(escape(event.task), total=event.total or None, message=""))
        elif event.kind == "advance" and under_way:
            self.progress.update(under_way[-1], completed=event.done, message=escape(event.message))
        elif event.kind == "end" and under_way:
            self.progress.remove_task(under_way.pop())
        elif event.kind == "note":
            self.progress.console.print(escape(event.message))
        elif event.kind == "warning":
            self.progress.console.print(f"[yellow]warning:[/yellow] {escape(event.message)}")
