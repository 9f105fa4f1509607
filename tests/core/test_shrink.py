"""The weight of least norm: against the pseudo-inverse of the inputs, ridge regression on them, and leaving one input out at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.shrink import Spectrum

WIDTH = 24


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum_of(inputs: torch.Tensor) -> Spectrum:
    return Spectrum.of(inputs.T @ inputs / len(inputs), len(inputs))


@pytest.mark.parametrize("tokens", [5, 16, 23])
def test_without_a_ridge_it_is_the_solution_of_least_norm(tokens):
    inputs, weight = draw(1, tokens, WIDTH), draw(2, 9, WIDTH)
    found = spectrum_of(inputs).shrink(weight, 0)
    torch.testing.assert_close(found, (torch.linalg.pinv(inputs) @ inputs @ weight.T).T, rtol=0, atol=1e-9)
    torch.testing.assert_close(inputs @ found.T, inputs @ weight.T, rtol=0, atol=1e-9)
    assert float(found.norm()) < float(weight.norm())
    torch.testing.assert_close(spectrum_of(inputs).shrink(found, 0), found, rtol=0, atol=1e-10)


def test_inputs_that_fill_the_space_leave_the_weight_as_it_is():
    weight = draw(3, 9, WIDTH)
    torch.testing.assert_close(spectrum_of(draw(4, 60, WIDTH)).shrink(weight, 0), weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [10, 60])
def test_with_a_ridge_it_is_ridge_regression(tokens):
    inputs, weight, ridge = draw(5, tokens, WIDTH), draw(6, 9, WIDTH), 0.03
    added = ridge * float(inputs.square().mean())
    normal = inputs.T @ inputs / tokens + added * torch.eye(WIDTH, dtype=torch.float64)
    expected = torch.linalg.solve(normal, inputs.T @ (inputs @ weight.T) / tokens).T
    torch.testing.assert_close(spectrum_of(inputs).shrink(weight, ridge), expected, rtol=0, atol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([6, 24, 80]))
def test_more_ridge_gives_a_smaller_weight_and_a_larger_error(seed, tokens):
    inputs, weight = draw(seed, tokens, WIDTH) * draw(seed + 1, WIDTH).exp(), draw(seed + 2, 5, WIDTH)
    spectrum = spectrum_of(inputs)
    ladder = [spectrum.shrink(weight, ridge) for ridge in (0.0, 1e-4, 1e-2, 1.0)]
    norms = [float(found.norm()) for found in ladder]
    errors = [float((inputs @ (found - weight).T).norm()) for found in ladder]
    assert norms == sorted(norms, reverse=True) and norms[0] <= float(weight.norm()) * (1 + 1e-12)
    assert errors[1:] == sorted(errors[1:]) and errors[0] <= errors[1] + 1e-7


def test_inputs_of_32_directions_shrink_a_weight_to_a_third():
    """The figures of the sheet: 40 tokens of width 128, variance 1.00 to about 40 / 128."""
    inputs, weight = draw(7, 40, 128), draw(8, 64, 128)
    found = spectrum_of(inputs).shrink(weight, 0)
    assert float(found.var()) == pytest.approx(40 / 128, rel=0.1)
    assert float((inputs @ (found - weight).T).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("tokens", "ridge", "within"), [(200, 0.1, 0.02), (60, 0.1, 0.15), (30, 0.03, 0.3), (30, 1.0, 0.15), (12, 0.1, 0.15)]
)
def test_the_expected_loss_is_about_that_of_leaving_one_out(tokens, ridge, within):
    """Each token judged by a weight that was estimated from the others with the same ridge. It is furthest off where there are about as
    many tokens as directions and little ridge."""
    inputs, weight = draw(9, tokens, WIDTH), draw(10, 200, WIDTH)
    spectrum, outputs = spectrum_of(inputs), inputs @ weight.T
    normal = inputs.T @ inputs + tokens * ridge * float(inputs.square().mean()) * torch.eye(WIDTH, dtype=torch.float64)
    lost = 0.0
    for number in range(tokens):
        rest = torch.arange(tokens) != number
        own = torch.outer(inputs[number], inputs[number])
        estimate = torch.linalg.solve(normal - own, inputs[rest].T @ outputs[rest])
        lost += float((inputs[number] @ estimate - outputs[number]).square().sum())
    seen, expected = spectrum.lost(weight, ridge)
    assert expected == pytest.approx(lost / float(outputs.square().sum()), rel=within)
    change = (inputs @ (spectrum.shrink(weight, ridge) - weight).T).square().sum()
    assert seen == pytest.approx(float(change / outputs.square().sum()), rel=1e-6)


def test_few_tokens_lose_much_of_what_was_not_seen_even_without_a_ridge():
    weight = draw(11, 200, 128)
    for tokens, low, high in ((40, 0.55, 0.85), (100, 0.1, 0.4), (1000, 0.0, 1e-6)):
        inputs, fresh = draw(12, tokens, 128), draw(13, 2000, 128)
        spectrum = spectrum_of(inputs)
        lost = float((fresh @ (spectrum.shrink(weight, 0) - weight).T).square().sum() / (fresh @ weight.T).square().sum())
        assert low <= lost <= high
        assert spectrum.lost(weight, 0)[1] == pytest.approx(lost, rel=0.25, abs=1e-6)


def test_inputs_that_never_spoke():
    spectrum = Spectrum.of(torch.zeros(8, 8), 5)
    assert spectrum.lost(torch.ones(2, 8), 0.1) == (0, 0)
    assert torch.equal(spectrum.shrink(torch.ones(2, 8), 0.1), torch.zeros(2, 8))
