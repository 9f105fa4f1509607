"""Windows of a token sequence: the text is cut into pieces of one length, side by side, and some of them are taken.

Window number n is `tokens[n * length : (n + 1) * length]`, so that two choices with no number in common share no token.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Int64
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import InputError


def draw_windows(
    tokens: Int64[Tensor, "count"], samples: int, length: int, seed: int, exclude: Collection[int] = ()
) -> tuple[Int64[Tensor, "samples length"], Int64[Tensor, "samples"]]:
    """Windows chosen at random without repetition, in a random order, both set by `seed`.

    Returns the windows and the position of each one's first token (window number times `length`). Windows numbered in `exclude` are
    never chosen. Where fewer are left than asked for, all of them are returned, with a warning. Raises InputError where none is left.
    """
    free = _free(tokens, samples, length, exclude)
    generator = torch.Generator().manual_seed(seed)
    chosen = free[torch.randperm(free.numel(), generator=generator)[:samples]]
    return _take(tokens, chosen, length), chosen * length


def even_windows(
    tokens: Int64[Tensor, "count"], samples: int, length: int, exclude: Collection[int] = ()
) -> tuple[Int64[Tensor, "samples length"], Int64[Tensor, "samples"]]:
    """Windows spread evenly over the text, in its order; the same for every seed.

    Returns, leaves out, warns and raises as `draw_windows` does.
    """
    free = _free(tokens, samples, length, exclude)
    count = min(samples, free.numel())
    chosen = free[torch.arange(count) * free.numel() // count]
    return _take(tokens, chosen, length), chosen * length


def _free(tokens: Tensor, samples: int, length: int, exclude: Collection[int]) -> Int64[Tensor, "windows"]:
    """The numbers of all windows that may be chosen."""
    if samples < 1 or length < 1:
        raise InputError(f"{samples} windows of {length} tokens were asked for; both numbers must be at least 1.")
    total = tokens.numel() // length
    if total == 0:
        raise InputError(
            f"the text is too short: it has {tokens.numel()} tokens, and one window needs {length}; "
            "give more text or ask for shorter windows."
        )
    numbers = torch.arange(total)
    free = numbers[~torch.isin(numbers, torch.tensor(sorted(exclude), dtype=torch.int64))]
    if free.numel() == 0:
        raise InputError(
            f"all {total} windows of {length} tokens of the text are already used for calibration; give another text or a longer one."
        )
    if free.numel() < samples:
        events.warn(f"the text has {free.numel()} windows of {length} tokens, fewer than the {samples} asked for; all of them are used")
    return free


def _take(tokens: Tensor, chosen: Tensor, length: int) -> Tensor:
    return tokens[: tokens.numel() // length * length].view(-1, length)[chosen]
