"""Recalibration before rounding: its guard, what it gains where inputs leave directions out, and that it never loses on calibration inputs.

Farronato et al. (2025), arXiv 2506.09782.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw, loss, problem
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.core.shrink import Spectrum
from thrifty.weights.solve.aqlm import AQLM
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.q_sam2 import QSAM2
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.ternary import Ternary


def low_rank(seed: int, tokens: int = 64, width: int = 128, rank: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """(calibration inputs, fresh inputs) of one distribution that leaves directions out."""
    directions = draw(seed, rank, width)
    return draw(seed + 1, tokens, rank) @ directions, draw(seed + 2, 512, rank) @ directions


def of_inputs(weight: torch.Tensor, inputs: torch.Tensor) -> Problem:
    return Problem(weight, inputs.T @ inputs / len(inputs), len(inputs), "layer")


@pytest.mark.parametrize("by", [Round(), OBS()], ids=["round", "obs"])
def test_it_is_the_best_of_what_the_guard_lets_through(by) -> None:
    given_, target = problem(0, 24, 64), Int(2, 32, range="minmax")
    ridges, bound = (0.001, 0.01, 0.1, 1.0), 0.02
    spectrum = Spectrum.of(given_.gram, given_.tokens)
    energy = loss(given_.weight, torch.zeros_like(given_.weight), given_.gram)
    tried, unseen = {None: by.solve(given_, target).values}, {None: 0.0}
    for ridge in ridges:
        seen, expected = spectrum.lost(given_.weight, ridge)
        if expected <= bound:
            tried[ridge] = by.solve(replace(given_, weight=spectrum.shrink(given_.weight, ridge)), target).values
            unseen[ridge] = (expected - seen) * energy
    assert 1 < len(tried) <= len(ridges)
    losses = {ridge: loss(given_.weight, values, given_.gram) for ridge, values in tried.items()}
    best = min(losses, key=lambda ridge: losses[ridge] + unseen[ridge])
    found = QSAM2(by, ridges, bound).solve(given_, target)
    assert torch.equal(found.values, tried[best])
    assert found.details.get("ridge") == best
    assert found.loss == pytest.approx(losses[best], rel=1e-6)
    assert torch.equal(found.encoded.decode(), found.values)
    # training starts from what was rounded
    assert best is not None and found.latent is not None
    assert torch.equal(found.latent, spectrum.shrink(given_.weight, best))
    assert torch.equal(by.solve(replace(given_, weight=found.latent), target).values, found.values)


@pytest.mark.parametrize("bits", [2, 4])
def test_where_inputs_leave_directions_out_fresh_ones_lose_a_third_of_what_plain_rounding_does(bits) -> None:
    """The sheet's check: rank 32 in 128, 64 calibration rows, min-max rounding, 20 seeds."""
    ratios = []
    for seed in range(20):
        inputs, fresh = low_rank(100 + 3 * seed)
        given_, target = of_inputs(draw(seed, 32, 128), inputs), Int(bits, 0, range="minmax")
        recalibrated = QSAM2(ridges=(0.0,)).solve(given_, target)
        assert recalibrated.details["ridge"] == 0
        errors = [
            float((fresh @ (given_.weight - values).T).square().mean())
            for values in (recalibrated.values, Round().solve(given_, target).values)
        ]
        ratios.append(errors[0] / errors[1])
    assert max(ratios) < 1
    assert sum(ratios) / len(ratios) < 0.4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_with_few_tokens_fresh_inputs_lose_no_more_than_without_it(bits) -> None:
    """Twice as many tokens as directions, whose energies fall: what is small in the calibration inputs need not be small in others."""
    falling = torch.exp(-torch.arange(64, dtype=torch.float64) / 16)
    turned = torch.linalg.qr(draw(5, 64, 64)).Q
    errors = torch.zeros(2, dtype=torch.float64)
    for seed in range(10):
        inputs, fresh = (draw(200 + 2 * seed + part, tokens, 64) * falling @ turned for part, tokens in ((0, 128), (1, 2000)))
        given_, target = of_inputs(draw(seed, 32, 64), inputs), Int(bits, 0, range="minmax")
        results = (QSAM2().solve(given_, target).values, Round().solve(given_, target).values)
        errors += torch.tensor([float((fresh @ (given_.weight - values).T).square().sum()) for values in results])
    assert errors[0] <= errors[1]


@given(st.integers(0, 10_000), st.sampled_from([Int(2, 8), Int(3, 0, False), Ternary(8)]))
def test_calibration_inputs_never_lose_more_than_without_it(seed, target) -> None:
    given_ = problem(seed, 6, 32)
    plain, found = Round().solve(given_, target), QSAM2(ridges=(0.001, 0.1), bound=0.05).solve(given_, target)
    assert found.loss <= plain.loss
    assert found.details.get("float_error", 0) <= 0.05


def test_a_weight_that_would_lose_too_much_is_left_alone() -> None:
    """Ten tokens of full rank say nothing about the other directions."""
    inputs = draw(1, 10, 64)
    given_, target = of_inputs(draw(2, 16, 64), inputs), Int(2, 0)
    found = QSAM2(ridges=(0.0, 0.001)).solve(given_, target)
    assert torch.equal(found.values, Round().solve(given_, target).values) and not found.details and found.latent is None
    other = problem(0, 24, 64)
    assert QSAM2().solve(other, target).details["float_error"] > 1e-6
    assert torch.equal(QSAM2(bound=1e-6).solve(other, target).values, Round().solve(other, target).values)


def test_without_calibration_there_is_nothing_to_recalibrate() -> None:
    given_ = Problem(draw(3, 8, 32), torch.eye(32, dtype=torch.float64), 0)
    assert torch.equal(QSAM2().solve(given_, Int(4, 8)).values, Round().solve(given_, Int(4, 8)).values)


def test_it_refuses_what_its_solver_refuses() -> None:
    with pytest.raises(InputError):
        QSAM2(AQLM()).accepts(Int())
    with pytest.raises(InputError, match="ridges"):
        QSAM2(ridges=(-1.0,))
    QSAM2(Round()).accepts(Int())
