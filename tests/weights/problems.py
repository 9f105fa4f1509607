"""Problems with correlated inputs of unequal size, and the plain loss that solvers are measured with."""

from __future__ import annotations

import torch

from thrifty.base.records import Problem


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def correlated_gram(seed: int, width: int, tokens: int | None = None, unequal: float = 0.7) -> torch.Tensor:
    """Mean of x x^T of inputs that share a few directions and differ in size."""
    shared = draw(seed, max(2, width // 8), width)
    count = tokens or 4 * width
    inputs = draw(seed + 1, count, shared.shape[0]) @ shared + 0.5 * draw(seed + 2, count, width)
    inputs = inputs * (unequal * draw(seed + 3, width)).exp()
    return inputs.T @ inputs / count


def problem(seed: int, out: int = 16, width: int = 32, dtype: torch.dtype = torch.float64, unequal: float = 0.7) -> Problem:
    gram = correlated_gram(seed + 50, width, unequal=unequal)
    return Problem(draw(seed, out, width, dtype=dtype), gram.to(dtype), 4 * width, "layer", seed)


def loss(weight: torch.Tensor, values: torch.Tensor, gram: torch.Tensor) -> float:
    """tr((W - V) G (W - V)^T), directly."""
    error = (weight - values).double()
    return float(torch.trace(error @ gram.double() @ error.T))
