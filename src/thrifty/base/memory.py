"""What the libraries below keep: memory that is free but not given back, and the code of products that were done once."""

from __future__ import annotations

import ctypes
import os
from functools import cache

KEPT_PRODUCTS = 32


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


def return_free_memory() -> None:
    """Give free pages back to the system.

    The GNU allocator keeps what was freed in blocks below 32 MB; after a block of a model that is as much again as the next one needs, so
    that the peak would grow with what happened before. Elsewhere nothing is done.
    """
    trim = _malloc_trim()
    if callable(trim):
        trim(0)
