"""Windows of a token sequence: the text is cut into pieces of one length, and some of them are taken.

Side by side, window number n is `tokens[n * length : (n + 1) * length]`. Sliding windows begin `stride` tokens apart and overlap, so that
what is scored in each has seen some text before it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import InputError

Used = Bool[Tensor, "count"] | None


def draw_windows(
    tokens: Int64[Tensor, "count"], samples: int, length: int, seed: int, used: Used = None
) -> tuple[Int64[Tensor, "samples length"], Int64[Tensor, "samples"]]:
    """Windows side by side, chosen at random without repetition, in a random order, both set by `seed`.

    Returns the windows and the position of each one's first token (window number times `length`). Windows with a token that is marked in
    `used` are never chosen. Where fewer are left than asked for, all of them are returned, with a warning. Raises InputError where none
    is left.
    """
    starts = _free(tokens, torch.arange(tokens.numel() // max(1, length)) * length, samples, length, used)
    generator = torch.Generator().manual_seed(seed)
    chosen = starts[torch.randperm(starts.numel(), generator=generator)[:samples]]
    return _take(tokens, chosen, length), chosen


def even_windows(
    tokens: Int64[Tensor, "count"], samples: int, length: int, used: Used = None
) -> tuple[Int64[Tensor, "samples length"], Int64[Tensor, "samples"]]:
    """Windows side by side, spread evenly over the text, in its order; the same for every seed.

    Returns, leaves out, warns and raises as `draw_windows` does.
    """
    starts = _free(tokens, torch.arange(tokens.numel() // max(1, length)) * length, samples, length, used)
    chosen = starts[_even(samples, starts.numel())]
    return _take(tokens, chosen, length), chosen


def sliding_windows(
    tokens: Int64[Tensor, "count"], samples: int | None, length: int, stride: int, used: Used = None
) -> tuple[Int64[Tensor, "samples length"], Int64[Tensor, "samples"], Int64[Tensor, "samples"]]:
    """Overlapping windows `stride` tokens apart: all of them, or `samples` of them spread evenly over the text.

    Returns the windows, the position of each one's first token, and the place in each of the first token that no window before it holds;
    from there on its tokens are its own to be scored, with at least length - stride tokens of context. The last window of the text is
    moved back so that it is full too. All windows together hold every token once as their own. Leaves out, warns and raises as
    `draw_windows` does, and raises InputError unless 1 <= stride < length.
    """
    if not 1 <= stride < length:
        raise InputError(f"sliding windows of {length} tokens need a stride from 1 to {length - 1}; got {stride}.")
    room = tokens.numel() - length
    planned = torch.arange(0 if room < 0 else 1 - (-room // stride)) * stride
    starts = planned.clamp_max(max(room, 0))
    new = torch.cat([starts[:1] * 0, starts[:-1] + length]) - starts
    free = torch.isin(starts, _free(tokens, starts, 1 if samples is None else samples, length, used))
    starts, new = starts[free], new[free]
    chosen = slice(None) if samples is None else _even(samples, starts.numel())
    return _take(tokens, starts[chosen], length), starts[chosen], new[chosen]


def _even(samples: int, available: int) -> Int64[Tensor, "samples"]:
    count = min(samples, available)
    return torch.arange(count) * available // max(1, count)


def _free(tokens: Tensor, starts: Tensor, samples: int, length: int, used: Used) -> Int64[Tensor, "windows"]:
    """The positions of all windows that may be chosen."""
    if samples < 1 or length < 1:
        raise InputError(f"{samples} windows of {length} tokens were asked for; both numbers must be at least 1.")
    if not starts.numel():
        raise InputError(
            f"the text is too short: it has {tokens.numel()} tokens, and one window needs {length}; "
            "give more text or ask for shorter windows."
        )
    if used is not None and used.any():
        before = torch.cat([torch.zeros(1, dtype=torch.int64), used.cumsum(0)])
        free = starts[before[starts + length] == before[starts]]
    else:
        free = starts
    if free.numel() == 0:
        raise InputError(
            f"all {starts.numel()} windows of {length} tokens of the text are already used for calibration; "
            "give another text or a longer one, or calibrate on fewer samples."
        )
    if free.numel() < samples:
        events.warn(f"the text has {free.numel()} windows of {length} tokens, fewer than the {samples} asked for; all of them are used")
    return free


def _take(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    return tokens[starts[:, None] + torch.arange(length)]
