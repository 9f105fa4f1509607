"""Errors for people: each carries one sentence that says what was wrong, where, and what to do.

The command line prints the sentence alone and leaves with the error's exit code; a traceback is shown only for a defect of ours.
"""

from __future__ import annotations

from typing import Any


class ThriftyError(Exception):
    """Any failure that thrifty foresees. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(ThriftyError, ValueError):
    """The request cannot be right (recipe, file, model, shape): nothing was written."""

    exit_code = 2


class RunError(ThriftyError, RuntimeError):
    """A valid request failed while running (disk full, memory, a file that changed): finished work is kept."""

    exit_code = 1


class GateError(ThriftyError):
    """The run ended, but the result loses more quality than the user allowed; it is kept apart.

    result: what the run would have returned, as plain JSON values.
    """

    exit_code = 3

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result
