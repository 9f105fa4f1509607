"""Values on a mask: the direct least-squares solution of every row, and no step that loses anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw
from thrifty.core.back_solve import back_solve


def row_loss(weight: torch.Tensor, values: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    error = weight - values
    return ((error @ gram) * error).sum(1)


@pytest.mark.parametrize("damping", [0.0, 0.05])
@pytest.mark.parametrize("kept", [0.2, 0.5, 1.0])
def test_it_is_the_least_squares_solution_of_each_row(kept, damping):
    """lstsq on explicit inputs, with rows for the damping."""
    width, tokens = 24, 90
    inputs = draw(0, tokens, width) @ (torch.eye(width, dtype=torch.float64) + 0.5 * draw(1, width, width))
    weight, mask = draw(2, 7, width), torch.rand(7, width, generator=torch.Generator().manual_seed(3)) <= kept
    start = draw(4, 7, width) * mask
    found = back_solve(weight, inputs.T @ inputs / tokens, start, mask, damping, 500, 1e-13).values
    for row in range(7):
        at = mask[row].nonzero()[:, 0]
        design = torch.cat([inputs[:, at], (damping * tokens) ** 0.5 * torch.eye(len(at), dtype=torch.float64)])
        wanted = torch.cat([inputs @ weight[row], (damping * tokens) ** 0.5 * start[row, at]])
        best = torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0]
        torch.testing.assert_close(found[row, at], best, rtol=1e-7, atol=1e-8)
    assert not bool(found[~mask].any())


@given(
    st.integers(0, 10_000),
    st.integers(2, 24),
    st.integers(1, 30),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([0.0, 1e-3, 1.0]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_it_never_loses_more_however_few_inputs_were_seen(seed, width, tokens, steps, damping, dtype):
    gram = correlated_gram(seed, width, tokens).to(dtype)
    weight, mask = draw(seed + 9, 5, width, dtype=dtype), draw(seed + 8, 5, width) > 0
    start = weight * mask
    found = back_solve(weight, gram, start, mask, damping, steps)
    before = row_loss(weight, start, gram)
    slack = 1e-5 if dtype == torch.float32 else 1e-12
    assert bool((row_loss(weight, found.values, gram) <= before * (1 + slack) + slack * float(gram.diagonal().mean())).all())
    assert not bool(found.values[~mask].any()) and bool(found.values.isfinite().all()) and found.steps <= steps


def test_nothing_is_done_where_nothing_can_be_gained():
    gram, weight = correlated_gram(0, 16), draw(1, 4, 16)
    everything = back_solve(weight, gram, weight, torch.ones(4, 16, dtype=torch.bool))
    assert everything.steps == 0 and torch.equal(everything.values, weight)
    nothing = back_solve(weight, gram, torch.zeros_like(weight), torch.zeros(4, 16, dtype=torch.bool))
    assert nothing.steps == 0 and not bool(nothing.values.any())
    diagonal = torch.diag(gram.diagonal())  # inputs that have nothing to do with each other
    mask = draw(2, 4, 16) > 0
    assert torch.equal(back_solve(weight, diagonal, weight * mask, mask).values, weight * mask)
