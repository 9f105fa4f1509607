"""Where the time goes: seconds by phase, each second counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds by what they were spent on. A phase inside another takes its time out of the outer one."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inside: list[float] = field(default_factory=list)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to `name`."""
        start = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.add(name, spent - self._inside.pop())
            if self._inside:
                self._inside[-1] += spent

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were taken elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
