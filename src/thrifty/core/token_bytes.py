"""Inputs as bytes for products of bytes: each token between its own smallest and largest value, or on grids that are known.

    step = (max - min) / 255,   code = round((x - min) / step)

A token whose outliers make that too coarse gets a second piece: what rounding left, in steps of 1 / PIECES of the first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from thrifty.core import fast_bytes

COARSE = 0.03
"""Steps between the codes of a token, in root mean squares of its values, above which it is multiplied in two pieces of 8 bits: rounding
would be off by more than 0.9 % of the token (a step's share is the root of a twelfth). Normal draws stay below, a few outliers do not."""
PIECES = 254
"""Steps of the second piece of 8 bits in one of the first."""
SMALLEST = 1e-8
"""Steps below this count as this much, so that rows of zeros divide."""
FEWEST = 2
"""Rows of codes that there are at least: oneDNN takes a hundred times as long for one row as for two where the matrix is small."""


class TokenBytes(NamedTuple):
    """codes: of the tokens, then the second pieces, and rows of no meaning where these are fewer than FEWEST. step, low: x is about
    code * step + low. coarse: the tokens that have a second piece, whose code PIECES / 2 stands for nothing left; None where none has."""

    codes: UInt8[Tensor, "rows in"]
    step: Float[Tensor, "tokens 1"]
    low: Float[Tensor, "tokens 1"]
    coarse: Int[Tensor, "few"] | None


def free_bytes(rows: Float[Tensor, "tokens in"]) -> TokenBytes:
    """The bytes of inputs that nobody asked to round."""
    found = fast_bytes.free_rows(rows, COARSE, SMALLEST, PIECES)
    if found is None:
        return _free_by_passes(rows)
    codes, step, low, marked, few = found
    return TokenBytes(codes[: max(FEWEST, len(rows) + few)], step, low, marked.nonzero()[:, 0] if few else None)


def _free_by_passes(rows: Float[Tensor, "tokens in"]) -> TokenBytes:
    """`core.fast_bytes.free_rows` in plain torch."""
    exact = rows.to(torch.float32, copy=True)
    low, high = exact.amin(1, keepdim=True), exact.amax(1, keepdim=True)  # torch.aminmax takes ten times as long
    step = (high - low) / 255
    coarse = (exact.shape[1] * step[:, 0].square() > COARSE**2 * torch.linalg.vecdot(exact, exact)).nonzero()[:, 0]
    step.clamp_min_(SMALLEST)
    exact.sub_(low).div_(step)
    rest = exact[coarse] if coarse.numel() else None
    codes = exact.round_()
    if rest is None:
        return TokenBytes(_bytes(codes), step, low, None)
    rest = rest.sub_(codes[coarse]).mul_(PIECES).add_(PIECES / 2).round_()
    return TokenBytes(_bytes(torch.cat([codes, rest])), step, low, coarse)


def grid_bytes(rows: Float[Tensor, "tokens in"], step: Tensor, zero_point: Tensor) -> UInt8[Tensor, "rows in"]:
    """Codes of 8 bits on a grid for each token, [tokens, 1], or one for all, [1], counted from -128; FEWEST rows at least.

    step, zero_point: float32.
    """
    found = fast_bytes.row_codes(rows, max(FEWEST, len(rows)), step, zero_point)
    if found is not None:
        return found
    exact = rows.to(torch.float32, copy=True)
    return _bytes(exact.div_(step).add_(zero_point).round_().clamp_(-128, 127).add_(128))


def _bytes(codes: Float[Tensor, "rows in"]) -> UInt8[Tensor, "rows in"]:
    """Whole numbers from 0 to 255 as bytes."""
    # torch's way from floats to bytes is four times as slow as the one over integers
    made = codes.to(torch.int32).to(torch.uint8)
    return made if len(made) >= FEWEST else torch.cat([made, made])
