"""Which part of which text a row holds, so that no token is used twice, whatever the texts and the lengths of the rows are.

A text is known by its tokens, not by its name: a copy of a file is the same text, and two splits of one data set are two texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

Span = tuple[str, int, int]
"""(SHA-256 of a text's tokens, first token, token after the last) of a row of text; (path, 0, 1) of an image."""


@dataclass(frozen=True)
class Piece:
    """A text inside a sequence of several: its digest, the place of its first token, and the place after its last."""

    digest: str
    start: int
    stop: int


def join(texts: Sequence[Int64[Tensor, "tokens"]], between: int | None) -> tuple[Int64[Tensor, "count"], tuple[Piece, ...]]:
    """The tokens of several texts in one sequence, and where each lies; `between`, if any, goes before each text that does not begin
    with it."""
    parts: list[Tensor] = []
    pieces: list[Piece] = []
    place = 0
    for tokens in texts:
        if len(texts) > 1 and between is not None and not (tokens.numel() and int(tokens[0]) == between):
            parts.append(tokens.new_tensor([between]))
            place += 1
        pieces.append(Piece(hashlib.sha256(tokens.numpy().tobytes()).hexdigest(), place, place + tokens.numel()))
        parts.append(tokens)
        place += tokens.numel()
    return torch.cat(parts), tuple(pieces)


def spans(pieces: Sequence[Piece], starts: Iterable[int], length: int) -> tuple[Span, ...]:
    """The parts of the texts that lie in windows of `length` tokens."""
    found = []
    for start in starts:
        for piece in pieces:
            first, last = max(start, piece.start), min(start + length, piece.stop)
            if first < last:
                found.append((piece.digest, first - piece.start, last - piece.start))
    return tuple(found)


def marked(pieces: Sequence[Piece], count: int, used: Iterable[Span]) -> Bool[Tensor, "count"]:
    """Which tokens of a sequence of `count` are in `used`."""
    mask = torch.zeros(count, dtype=torch.bool)
    places: dict[str, list[Piece]] = {}
    for piece in pieces:
        places.setdefault(piece.digest, []).append(piece)
    for digest, first, last in used:
        for piece in places.get(digest, ()):
            mask[piece.start + first : piece.start + last] = True
    return mask
