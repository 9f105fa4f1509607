"""Vectors to quantize."""

from __future__ import annotations

import torch


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(seed: int, count: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, width, generator=seeded(seed), dtype=torch.float64).to(dtype)


def correlated(seed: int, count: int, width: int, share: float = 0.9) -> torch.Tensor:
    """Unit variance, neighbouring values correlated by `share`."""
    factor = torch.linalg.cholesky(share ** (torch.arange(width)[:, None] - torch.arange(width)).abs().double())
    return gaussian(seed, count, width) @ factor.T


def distortion(vectors: torch.Tensor, quantized: torch.Tensor) -> float:
    """Mean squared error of a value."""
    return float((vectors - quantized).square().mean())


def uniform_scalar(vectors: torch.Tensor, bits: int) -> torch.Tensor:
    """Every value to one of 2^bits evenly spaced levels, at the step with the least error."""
    tried = []
    for span in torch.linspace(1, 5, 81, dtype=torch.float64):
        step = 2 * span * vectors.std() / 2**bits
        levels = (vectors / step - 0.5).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        tried.append((levels + 0.5) * step)
    return min(tried, key=lambda values: distortion(vectors, values))
