"""What this process holds, and what the libraries below keep: free memory that is not given back, and the code of products done once."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

KEPT_PRODUCTS = 32
LARGE = 64 << 20
"""Bytes for which it is worth while to give memory back first."""
_STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process since it began."""
    import resource

    # getrusage counts what the process that started this one held, too
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return status_bytes("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def rss_bytes() -> int:
    """Resident memory of this process now; where the system does not say, its peak."""
    return status_bytes("VmRSS") or peak_rss_bytes()


def status_bytes(name: str) -> int:
    """A memory figure of this process in bytes (`VmRSS`, `VmHWM`), 0 where the system does not tell."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


@cache
def _malloc_trim() -> object | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not the GNU C library
        return None


def keep_few_products() -> None:
    """Let oneDNN keep the code of few matrix products, unless the environment says how many.

    It makes code for every shape it meets, half a megabyte each in bfloat16, and keeps that of 1024. Experts meet a new number of tokens
    every time. Must be called before the first product.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_PRODUCTS))


def return_free_memory(wanted: int | None = None) -> None:
    """Give free pages back to the system.

    wanted: bytes of what comes next. Where that is little, nothing is done: making pages anew would take longer than they are worth.

    The GNU allocator keeps what was freed in blocks below 32 MB; after a block of a model that is as much again as the next one needs, so
    that the peak would grow with what happened before. Elsewhere nothing is done.
    """
    trim = _malloc_trim()
    if callable(trim) and (wanted is None or wanted >= LARGE):
        trim(0)
