"""What the allocator keeps: memory that is free but not given back."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def _malloc_trim() -> object | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not the GNU C library
        return None


def return_free_memory() -> None:
    """Give free pages back to the system.

    The GNU allocator keeps what was freed in blocks below 32 MB; after a block of a model that is as much again as the next one needs, so
    that the peak would grow with what happened before. Elsewhere nothing is done.
    """
    trim = _malloc_trim()
    if callable(trim):
        trim(0)
