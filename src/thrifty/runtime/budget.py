"""What stays in memory and what is left on disk, decided from a budget before a weight is read.

Prices are bytes. What is given up, in this order, as little of it as makes the rest fit:

    1. embeddings  rows are read when a token asks for them, which costs next to nothing; a head that shares the table is read through for
                   every token
    2. keys and values  older ones go to a file, the newest stay; every token reads the older ones back, layer by layer
    3. blocks      the last ones are read anew for every token
    4. head        read through for every token, as a shared one is
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from thrifty.base.errors import InputError

LEAST_KEPT = 128
"""Newest tokens of which keys and values stay in memory, where any are spilled."""
SPILL_STEP = 64
"""So many more are held before that many are written at once."""
TABLE_BYTES = 16 << 20
"""What reading rows or pieces of a matrix on disk holds at a time."""

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)


def parse_memory(memory: str | int) -> int:
    """Bytes that `4GB`, `512MiB` or a whole number of bytes mean. Raises InputError for anything else."""
    if isinstance(memory, int) and not isinstance(memory, bool) and memory > 0:
        return memory
    found = _SIZE.fullmatch(memory) if isinstance(memory, str) else None
    unit = _UNITS.get(found[2].lower()) if found else None
    bytes_ = int(float(found[1]) * unit) if found and unit else 0
    if bytes_ < 1:
        raise InputError(f"memory must be a size such as 4GB or 512MiB, or a whole number of bytes above 0; got {memory!r}")
    return bytes_


@dataclass(frozen=True)
class Parts:
    """What a model takes, in bytes.

    process: what the process holds before a weight is read. fixed: weights that always stay. embedding, head: their tables, 0 where they
    cannot be left on disk, and for a head that is the embedding's table. blocks: each one's weights. tokens: how many the cache is planned
    for. cache: bytes of keys and values of a token in each layer that can spill; cache_fixed: of all other layers, whatever they hold.
    work: what computing holds besides; loading: what reading weights holds besides, when nothing is computed yet.
    """

    process: int
    fixed: int
    embedding: int
    head: int
    blocks: tuple[int, ...]
    tokens: int
    cache: tuple[int, ...] = ()
    cache_fixed: int = 0
    work: int = 0
    loading: int = 0


@dataclass(frozen=True)
class Placement:
    """What is left on disk, and the peak that this is expected to take.

    embedding, head: whether they are left there; kept: newest tokens whose keys and values stay in memory, None for all;
    blocks: how many of the last blocks are left there. bytes: the peak. budget: what there was.
    """

    embedding: bool = False
    head: bool = False
    kept: int | None = None
    blocks: int = 0
    bytes: int = 0
    budget: int = 0

    def __str__(self) -> str:
        left = ["the embeddings"] if self.embedding else []
        left += ["the head"] if self.head else []
        left += [f"keys and values older than {self.kept:,} tokens"] if self.kept is not None else []
        left += [f"the last {self.blocks} blocks" if self.blocks > 1 else "the last block"] if self.blocks else []
        where = f"{' and '.join(', '.join(left).rsplit(', ', 1))} on disk" if left else "everything in memory"
        return f"{where}; at most {_size(self.bytes)} of {_size(self.budget)} expected"


def place(budget: int, parts: Parts) -> Placement:
    """The first placement, in the order above, whose peak fits `budget` bytes.

    Raises InputError with the least number of bytes that would do where none fits.
    """
    least = None
    for candidate in _candidates(budget, parts):
        bytes_ = peak(candidate, parts)
        if bytes_ <= budget:
            return replace(candidate, bytes=bytes_, budget=budget)
        least = bytes_ if least is None else min(least, bytes_)
    raise InputError(
        f"the model does not fit in {_size(budget)} of memory even with all on disk that can be there: for {parts.tokens:,} tokens it "
        f"needs {least} bytes, {_size(parts.process)} of which the process has already; give that many, or fewer tokens"
    )


def peak(placement: Placement, parts: Parts) -> int:
    """Bytes that the process holds at most: while it loads, or while it computes."""
    return _weights(placement, parts) + max(parts.loading, parts.work + _cache(placement.kept, parts))


def _weights(placement: Placement, parts: Parts) -> int:
    on_disk = parts.blocks[len(parts.blocks) - placement.blocks :]
    bytes_ = parts.process + parts.fixed + sum(parts.blocks) - sum(on_disk)
    bytes_ += 2 * max(on_disk, default=0)  # the one that computes, and the one that is read meanwhile
    bytes_ += 0 if placement.embedding else parts.embedding
    bytes_ += 0 if placement.head else parts.head
    return bytes_ + (TABLE_BYTES if placement.embedding or placement.head else 0)


def _cache(kept: int | None, parts: Parts) -> int:
    """Bytes of keys and values. A layer's are whole while it computes: a copy where they grow, two layers' where they are read back."""
    largest = max(parts.cache, default=0) * parts.tokens
    if kept is None:
        return parts.cache_fixed + sum(parts.cache) * parts.tokens + largest
    return parts.cache_fixed + sum(parts.cache) * min(parts.tokens, kept + SPILL_STEP) + 2 * largest


def _candidates(budget: int, parts: Parts) -> Iterator[Placement]:
    now = Placement()
    yield now
    if parts.embedding > TABLE_BYTES:
        now = replace(now, embedding=True)
        yield now
    spilled = replace(now, kept=_most_kept(budget, now, parts))
    if peak(spilled, parts) < peak(now, parts):
        now = spilled
        yield now
    for count in range(1, len(parts.blocks) + 1):
        yield replace(now, blocks=count)
    now = replace(now, blocks=len(parts.blocks))
    if parts.head > TABLE_BYTES:
        yield replace(now, head=True)


def _most_kept(budget: int, placement: Placement, parts: Parts) -> int:
    """The most tokens whose keys and values fit in what the rest leaves, `LEAST_KEPT` where not even those do."""
    free = budget - _weights(placement, parts) - parts.work - _cache(-SPILL_STEP, parts)
    return max(LEAST_KEPT, free // max(1, sum(parts.cache)) - SPILL_STEP)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"
