"""The divergence against its formula in float64, its bounds, and what it goes to at the ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.divergence import jensen_shannon

betas = st.floats(0.01, 0.99)
seeds = st.integers(0, 10_000)


def logits(seed: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(2, 6, 11, generator=generator))


def by_definition(reference: torch.Tensor, found: torch.Tensor, beta: float) -> torch.Tensor:
    p, s = reference.double().softmax(-1), found.double().softmax(-1)
    m = beta * p + (1 - beta) * s
    return (beta * p * (p / m).log() + (1 - beta) * s * (s / m).log()).sum(-1)


@given(seeds, betas)
def test_it_is_what_it_is_defined_as(seed: int, beta: float) -> None:
    p, s = logits(seed)
    torch.testing.assert_close(jensen_shannon(p, s, beta).double(), by_definition(p, s, beta), rtol=1e-4, atol=1e-6)


@given(seeds, betas)
def test_bounds_and_symmetry(seed: int, beta: float) -> None:
    p, s = logits(seed, scale=20.0)
    found = jensen_shannon(p, s, beta)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert bool((found >= -1e-6).all()) and bool((found <= entropy + 1e-5).all())
    torch.testing.assert_close(found, jensen_shannon(s, p, 1 - beta), rtol=1e-4, atol=1e-5)
    assert float(jensen_shannon(p, p + 3.0, beta).abs().max()) < 1e-5


@pytest.mark.parametrize(("beta", "whole"), [(1e-4, 0), (1 - 1e-4, 1)])
def test_the_ends_are_the_two_kl_divergences(beta: float, whole: int) -> None:
    p, s = logits(3)
    near = by_definition(p, s, beta) / (beta if whole == 0 else 1 - beta)
    torch.testing.assert_close(jensen_shannon(p, s, whole).double(), near, rtol=5e-3, atol=1e-5)
    first, second = (p, s) if whole == 0 else (s, p)
    expected = torch.nn.functional.kl_div(second.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(jensen_shannon(p, s, whole), expected)


def test_gradients_reach_what_was_found() -> None:
    p, s = logits(5)
    s.requires_grad_()
    jensen_shannon(p, s, 0.5).sum().backward()
    with torch.no_grad():
        step = s - 0.1 * s.grad
        assert float(jensen_shannon(p, step, 0.5).sum()) < float(jensen_shannon(p, s, 0.5).sum())
