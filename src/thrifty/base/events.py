"""Progress as events: work announces what it does, whoever listens draws it.

Library code calls `announce`; the command line subscribes a renderer for the length of a run. With no listener nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    kind: `begin`/`end` of a task, `advance` within it, `note` for the user, `warning` for the user and the certificate.
    task: what is being done, in words ("blocks", "evaluate").
    done, total: progress; total is 0 where it is not known. unit: what they count, where that is bytes.
    """

    kind: Literal["begin", "advance", "end", "note", "warning"]
    task: str
    message: str = ""
    done: float = 0
    total: float = 0
    unit: Literal["", "bytes"] = ""


Listener = Callable[[Event], None]
_listeners: list[Listener] = []


def announce(event: Event) -> None:
    """Hand the event to every listener."""
    for listener in tuple(_listeners):
        listener(event)


def note(message: str, task: str = "") -> None:
    """Tell the user something that needs no action."""
    announce(Event("note", task, message))


def warn(message: str, task: str = "") -> None:
    """Tell the user something that may need action; it is also written into the certificate."""
    announce(Event("warning", task, message))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Subscribe `listener` for the length of the `with` block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def task(name: str, total: float = 0, unit: Literal["", "bytes"] = "", done: float = 0) -> Iterator[Callable[[float, str], None]]:
    """Announce a task; the yielded function moves it on: `advance(done, message)`. done: what an earlier run did."""
    announce(Event("begin", name, done=done, total=total, unit=unit))

    def advance(done: float, message: str = "") -> None:
        announce(Event("advance", name, message, done, total, unit))

    try:
        yield advance
    finally:
        announce(Event("end", name, total=total, unit=unit))
