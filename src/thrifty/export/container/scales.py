"""Scales in the narrowest type that holds every one of them exactly.

exponent        uint8 e: 2^(e - 127)
float8_e4m3fn   a float of 8 bits, divided by `whole` (float32, one for the matrix)
bfloat16, float16, float32
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.export.container.layout import Parts

ScaleType = Literal["exponent", "float8_e4m3fn", "bfloat16", "float16", "float32"]

BIAS = 127


def narrowest(scale: Float[Tensor, "*shape"], whole: Tensor | None = None) -> ScaleType:
    """The type that scales are stored in."""
    if bool((scale > 0).all()) and torch.equal(_powers(_exponents(scale)), scale):
        return "exponent"
    if whole is not None and torch.equal((scale * whole).to(torch.float8_e4m3fn).to(torch.float32) / whole, scale):
        return "float8_e4m3fn"
    for kind in ("bfloat16", "float16"):
        if torch.equal(scale.to(getattr(torch, kind)).to(torch.float32), scale):
            return kind  # type: ignore[return-value]
    return "float32"


def stored_type(kind: ScaleType) -> torch.dtype:
    """The type of the tensor."""
    return torch.uint8 if kind == "exponent" else getattr(torch, kind)


def pack_scale(scale: Float[Tensor, "*shape"], kind: ScaleType, whole: Tensor | None = None) -> Tensor:
    """One row of scales as they are stored."""
    flat = scale.reshape(-1)
    if kind == "exponent":
        return _exponents(flat)
    return (flat * whole if kind == "float8_e4m3fn" else flat).to(stored_type(kind))


def read_scale(parts: Parts, part: str, kind: ScaleType, shape: tuple[int, ...], whole: Tensor | None = None) -> Tensor:
    """Scales, float32 in `shape`. Raises InputError for one that is not finite."""
    count = 1
    for length in shape:
        count *= length
    stored = parts.take(part, stored_type(kind), count)
    scale = _powers(stored) if kind == "exponent" else stored.to(torch.float32)
    scale = scale / whole if kind == "float8_e4m3fn" else scale
    if not bool(torch.isfinite(scale).all()):
        raise parts.fail(part, "holds numbers that are not finite")
    return scale.reshape(shape)


def _exponents(scale: Tensor) -> Tensor:
    return (torch.frexp(scale).exponent - 1 + BIAS).clamp(0, 255).to(torch.uint8)


def _powers(exponents: Tensor) -> Tensor:
    return torch.ldexp(torch.ones(exponents.shape, dtype=torch.float32, device=exponents.device), exponents.to(torch.int32) - BIAS)
