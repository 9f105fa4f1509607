"""Curves of parts of a model: losses that fall with bits, of unequal size and sensitivity."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from thrifty.base.records import Curve

BITS = (2, 3, 4, 8)


def curves(seed: int, parts: int = 12, bits: tuple[float, ...] = BITS, spread: float = 2.0) -> list[Curve]:
    """Losses C n 4^-b with some scatter; costs n b."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in range(parts):
        size = int(torch.randint(1, 20, (), generator=generator)) * 64
        sensitivity = float((spread * torch.randn((), generator=generator)).exp())
        scatter = (0.2 * torch.randn(len(bits), generator=generator)).exp().tolist()
        losses = tuple(sensitivity * size * 4.0**-bit * factor for bit, factor in zip(bits, scatter, strict=True))
        found.append(Curve(f"layers.{part}", size, losses, tuple(float(size * bit) for bit in bits)))
    return found


def weights(found: list[Curve]) -> int:
    return sum(curve.size for curve in found)


MEANS = st.floats(2, 8)
