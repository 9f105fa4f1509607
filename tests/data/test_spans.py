"""Parts of texts: against a brute force over the tokens themselves."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.data.spans import join, marked, spans


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from([None, 0]), st.integers(1, 9), st.data())
def test_what_windows_hold_is_marked_wherever_their_texts_lie(
    lengths: list[int], between: int | None, length: int, data: st.DataObject
) -> None:
    texts = [torch.arange(count) + 100 * (number + 1) for number, count in enumerate(lengths)]
    sequence, pieces = join(texts, between)
    starts = data.draw(st.lists(st.integers(0, max(0, sequence.numel() - length)), max_size=3))
    found = spans(pieces, starts, length)
    taken = {int(token) for start in starts for token in sequence[start : start + length] if token}
    other, moved = join(data.draw(st.permutations(texts)), between)
    assert {int(token) for token in other[marked(moved, other.numel(), found)]} == taken


def test_the_token_between_texts_stands_before_each_that_lacks_it() -> None:
    first, second = torch.tensor([7, 8]), torch.tensor([0, 9])
    sequence, pieces = join([first, second], 0)
    assert sequence.tolist() == [0, 7, 8, 0, 9]
    assert [(piece.start, piece.stop) for piece in pieces] == [(1, 3), (3, 5)]
    assert join([first], 0)[0].tolist() == [7, 8]
