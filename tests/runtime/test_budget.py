"""What stays in memory: the decision against a search through every placement in the documented order."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.errors import InputError
from thrifty.runtime import budget as module
from thrifty.runtime.budget import LEAST_KEPT, SPILL_STEP, Parts, Placement, parse_memory, peak, place

TABLE = 50
sizes = st.integers(0, 300)
models = st.builds(
    Parts,
    process=sizes,
    fixed=sizes,
    embedding=sizes,
    head=sizes,
    blocks=st.lists(sizes, max_size=5).map(tuple),
    tokens=st.integers(1, 400),
    cache=st.lists(st.integers(1, 3), max_size=6).map(tuple),
    cache_fixed=sizes,
    work=sizes,
    loading=sizes,
)


@pytest.fixture(autouse=True, scope="module")
def small_table() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TABLE_BYTES", TABLE)
        yield


def by_hand(parts: Parts, embedding: bool, kept: int | None, blocks: int, head: bool) -> int:
    """The peak, added up thing by thing."""
    held = [parts.process, parts.fixed]
    held += [TABLE] if embedding or head else []
    held += [] if embedding else [parts.embedding]
    held += [] if head else [parts.head]
    staying, leaving = parts.blocks[: len(parts.blocks) - blocks], parts.blocks[len(parts.blocks) - blocks :]
    held += [*staying, *([max(leaving)] * 2 if leaving else [])]
    newest = parts.tokens if kept is None else min(parts.tokens, kept + SPILL_STEP)
    whole_layers = (1 if kept is None else 2) * max(parts.cache, default=0) * parts.tokens
    computing = parts.work + parts.cache_fixed + whole_layers + sum(layer * newest for layer in parts.cache)
    return sum(held) + max(computing, parts.loading)


def search(budget: int, parts: Parts) -> tuple[bool, int | None, int, bool] | None:
    """The first in the documented order that fits; of tokens kept the most. None where nothing does."""
    embeddings = [False, True] if parts.embedding > TABLE else [False]
    for embedding in embeddings:
        if by_hand(parts, embedding, None, 0, False) <= budget:
            return embedding, None, 0, False
    embedding, kept = embeddings[-1], None
    # as many as everything in memory would hold are as many as there are
    for kept in range(parts.tokens + 1200, LEAST_KEPT - 1, -1):
        if by_hand(parts, embedding, kept, 0, False) <= budget:
            break
    if by_hand(parts, embedding, kept, 0, False) >= by_hand(parts, embedding, None, 0, False):
        kept = None
    found = [(blocks, False) for blocks in range(len(parts.blocks) + 1)]
    found += [(len(parts.blocks), True)] if parts.head > TABLE else []
    return next(((embedding, kept, *rest) for rest in found if by_hand(parts, embedding, kept, *rest) <= budget), None)


@given(parts=models, share=st.floats(0, 1.2))
def test_the_first_placement_that_fits(parts: Parts, share: float) -> None:
    budget = 1 + int(share * by_hand(parts, False, None, 0, False))
    expected = search(budget, parts)
    if expected is None:
        with pytest.raises(InputError, match="does not fit"):
            place(budget, parts)
        return
    found = place(budget, parts)
    assert (found.embedding, found.blocks, found.head) == (expected[0], expected[2], expected[3])
    assert (found.kept is None) == (expected[1] is None)
    if found.kept is not None and expected[1] is not None:
        assert min(found.kept, parts.tokens) == min(expected[1], parts.tokens)
    assert found.bytes == by_hand(parts, found.embedding, found.kept, found.blocks, found.head) == peak(found, parts) <= budget


@given(parts=models, share=st.floats(0, 1.2), more=st.integers(0, 500))
def test_with_more_memory_no_more_is_left_on_disk(parts: Parts, share: float, more: int) -> None:
    budget = 1 + int(share * peak(Placement(), parts))
    try:
        little = place(budget, parts)
    except InputError:
        return
    much = place(budget + more, parts)
    assert (much.embedding, much.blocks, much.head) <= (little.embedding, little.blocks, little.head)
    assert little.kept is not None or much.kept is None
    assert little.kept is None or much.kept is None or much.kept >= little.kept


@given(parts=models)
def test_the_number_in_a_refusal_is_the_least_that_is_enough(parts: Parts) -> None:
    try:
        place(1, parts)
    except InputError as error:
        least = int(re.findall(r"needs (\d+) bytes", str(error))[0])
        assert place(least, parts).bytes <= least
        with pytest.raises(InputError, match="does not fit"):
            place(least - 1, parts)


def test_it_says_what_it_did() -> None:
    parts = Parts(process=10, fixed=5, embedding=400, head=90, blocks=(100, 100, 100, 100), tokens=1000, cache=(1, 1, 1, 1), work=7)
    assert str(place(6000, parts)) == "everything in memory; at most 0 MB of 0 MB expected"
    assert str(place(4000, parts)).startswith("the embeddings and keys and values older than")
    assert str(place(3300, parts)).startswith(f"the embeddings, keys and values older than {LEAST_KEPT} tokens and the last")
    with pytest.raises(InputError, match="for 1,000 tokens it needs"):
        place(2000, parts)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [("4GB", 4 * 10**9), ("512MiB", 512 << 20), ("1.5 gib", 3 << 29), (" 7 kB ", 7000), ("100B", 100), (123, 123), ("2tb", 2 * 10**12)],
)
def test_sizes(memory: str | int, expected: int) -> None:
    assert parse_memory(memory) == expected


@pytest.mark.parametrize("memory", ["", "4", "4G", "GB", "-1GB", "0GB", "4 GB 2", 0, -5, True, 1.5, None, "nanGB", "1e3MB"])
def test_what_is_no_size(memory: object) -> None:
    with pytest.raises(InputError, match="memory must be a size such as 4GB"):
        parse_memory(memory)  # type: ignore[arg-type]
