"""Windows: within the text, side by side, never twice, set by the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.errors import InputError
from thrifty.base.events import Event, listening
from thrifty.data.windows import draw_windows, even_windows, sliding_windows


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 20), st.integers(0, 5), st.booleans())
def test_windows_are_disjoint_pieces_of_the_text(count: int, samples: int, length: int, seed: int, even: bool) -> None:
    tokens = torch.arange(count) + 1000
    if count < length:
        with pytest.raises(InputError, match=f"it has {count} tokens, and one window needs {length}"):
            draw_windows(tokens, samples, length, seed)
        return
    windows, starts = even_windows(tokens, samples, length) if even else draw_windows(tokens, samples, length, seed)
    assert windows.shape == (min(samples, count // length), length)
    assert torch.equal(windows, torch.stack([tokens[start : start + length] for start in starts.tolist()]))
    assert windows.unique().numel() == windows.numel()


def test_the_seed_sets_choice_and_order() -> None:
    tokens = torch.arange(1000)
    first, starts = draw_windows(tokens, 10, 10, 0)
    assert torch.equal(first, draw_windows(tokens, 10, 10, 0)[0])
    assert not torch.equal(first, draw_windows(tokens, 10, 10, 1)[0])
    assert starts.tolist() != sorted(starts.tolist())


def test_even_windows_are_spread() -> None:
    assert even_windows(torch.arange(100), 5, 10)[1].tolist() == [0, 20, 40, 60, 80]


def test_windows_with_a_used_token_are_never_chosen() -> None:
    tokens = torch.arange(200)
    taken, starts = draw_windows(tokens, 15, 10, 3)
    used = torch.zeros(200, dtype=torch.bool)
    used[taken.flatten()] = True
    _, rest = even_windows(tokens, 5, 10, used)
    assert sorted((starts // 10).tolist() + (rest // 10).tolist()) == list(range(20))
    for length in (3, 7, 10):
        windows, _ = even_windows(tokens, 4, length, used)
        assert not used[windows].any()
    used[9::10] = True
    with pytest.raises(InputError, match="all 20 windows"):
        even_windows(tokens, 1, 10, used)


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_sliding_windows_hold_each_token_once_as_their_own(count: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length - 1))
    if count < length:
        with pytest.raises(InputError, match=f"it has {count} tokens, and one window needs {length}"):
            sliding_windows(torch.arange(count), None, length, stride)
        return
    windows, starts, new = sliding_windows(torch.arange(count) + 5, None, length, stride)
    assert torch.equal(windows, 5 + starts[:, None] + torch.arange(length))
    own = [int(start) + place for start, low in zip(starts, new, strict=True) for place in range(int(low), length)]
    assert own == list(range(count))
    assert (new[1:] >= length - stride).all()


def test_some_of_the_sliding_windows() -> None:
    tokens = torch.arange(100)
    _, starts, new = sliding_windows(tokens, 4, 20, 10)
    assert starts.tolist() == [0, 20, 40, 60] and new.tolist() == [0, 10, 10, 10]
    used = tokens < 35
    _, starts, new = sliding_windows(tokens, None, 20, 10, used)
    assert starts.tolist() == [40, 50, 60, 70, 80] and new.tolist() == [10] * 5
    for stride in (0, 20, 21):
        with pytest.raises(InputError, match="stride from 1 to 19"):
            sliding_windows(tokens, None, 20, stride)


def test_fewer_windows_than_asked_for_is_said() -> None:
    heard: list[Event] = []
    with listening(heard.append):
        windows, _ = draw_windows(torch.arange(35), 8, 10, 0)
    assert windows.shape == (3, 10)
    assert [event.kind for event in heard] == ["warning"] and "3 windows" in heard[0].message and "8" in heard[0].message


@pytest.mark.parametrize(("samples", "length"), [(0, 4), (4, 0), (-1, 4)])
def test_senseless_numbers(samples: int, length: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        draw_windows(torch.arange(50), samples, length, 0)
