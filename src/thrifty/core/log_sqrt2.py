"""Powers of the square root of two, for values from 0 to 1 that crowd near 0, as those of a softmax do.

    q = round(-2 log2(p / s)),    value = s 2^(-q / 2)  for q = 0 .. 2^bits - 2,    0 for all smaller p

Rounding is to the nearest logarithm, so what is not too small is off by at most 2^(1/4) - 1 = 18.9 % of itself. Multiplying by such a
number is a shift by ceil(q / 2) bits and one of two scales, s and s sqrt 2. The values have no sign, so this is no set for weights. Applied
to the numerators exp(a - max a), whose largest is 1, it lets the row's sum be divided out after the product with the values of attention.
It is made for 4 bits: with more, small values gain and large ones stay as coarse as they were, so that even steps lose less.
The released code keeps 2^bits powers and zero beside them, one number more than the bits can tell apart; here zero has the last code.
Source: CoQMoE (2025), arXiv 2506.08496, after RepQ-ViT (Li et al. 2023, arXiv 2212.08254).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

QUANTILES = (0.999, 0.9999, 0.99999)
"""Parts of the values that the search for a scale leaves at or below it."""


def encode(values: Float[Tensor, "*shape"], scale: float | Tensor, bits: int) -> UInt8[Tensor, "*shape"]:
    """The code of each value. values: 0 or more; above the scale they are clipped. scale: what code 0 stands for. bits: 2 to 8."""
    return torch.round(-2 * torch.log2(values / scale)).clamp_(0, zero_code(bits)).to(torch.uint8)


def decode(codes: UInt8[Tensor, "*shape"], scale: float | Tensor, bits: int) -> Float[Tensor, "*shape"]:
    """The number of each code, float32."""
    powers = torch.exp2(torch.arange(2**bits, dtype=torch.float64, device=codes.device) / -2)
    powers[zero_code(bits)] = 0
    return powers.to(torch.float32)[codes.long()] * scale


def decode_by_shifts(codes: UInt8[Tensor, "*shape"], scale: float | Tensor, bits: int) -> Float[Tensor, "*shape"]:
    """The same numbers in the form that hardware without multipliers takes, float32: one of two scales, shifted by ceil(code / 2) bits."""
    kept = (codes < zero_code(bits)).to(torch.float32)
    return torch.ldexp(kept * (1 + (codes % 2) * (math.sqrt(2) - 1)), -((codes.to(torch.int32) + 1) // 2)) * scale


def zero_code(bits: int) -> int:
    """The code that stands for zero."""
    return int(2**bits) - 1


def fit_scale(values: Float[Tensor, "*shape"], bits: int) -> float:
    """The scale for values like these: of their quantiles in `QUANTILES` the one with the least squared error; 1 where all are zero."""
    ordered = values.flatten().sort().values
    best, least = 1.0, math.inf
    for share in QUANTILES:
        scale = float(ordered[math.ceil(share * len(ordered)) - 1])
        error = math.inf if scale <= 0 else float((decode(encode(values, scale, bits), scale, bits) - values).square().sum())
        if error < least:
            best, least = scale, error
    return best


def attend(scores: Float[Tensor, "*heads queries keys"], values: Float[Tensor, "*heads keys width"], bits: int) -> Tensor:
    """What attention puts out, [*heads, queries, width], when the numerators of its softmax are rounded.

    scores: before the softmax, -inf where a query must not look. The row's sum is that of the rounded numerators, so each output lies among
    the values; the largest numerator is 1 and stays.
    """
    numerators = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = decode(encode(numerators, 1.0, bits), 1.0, bits).to(values.dtype)
    return rounded @ values / rounded.sum(-1, keepdim=True)
