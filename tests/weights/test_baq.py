"""BAQ: the identities of the closed form, brute force over allocations, and the whole method written down plainly.

Zhang, Wang, Lasaulce and Debbah (2025), arXiv 2506.05664.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw, loss, problem
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.weights.allocate.baq import BAQ, MOST_LEVELS, ColumnGrid, allocate_bits
from thrifty.weights.allocate.uniform import Uniform
from thrifty.weights.base import Treatment, hold, solve
from thrifty.weights.preset.rtn import RTN
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM


def grid(bits: int) -> Int:
    return Int(bits, 0, False)


def treatment(bits: int, theta: float = 1.95) -> Treatment:
    return Treatment(OBS(), grid(bits), BAQ(theta))


def published(task: Problem, losses: torch.Tensor, bits: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, levels) of the second pass: levels from the losses of the first, then columns rounded one after the other."""
    ratio = losses.log().mean().exp() / losses.mean()
    levels = ((losses / (ratio * losses.mean()) * 2 ** (theta * bits)) ** (1 / theta)).clamp_min(1).round()
    width = task.gram.shape[0]
    damped = task.gram + 0.01 * task.gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    low, high = task.weight.amin(1).clamp_max(0), task.weight.amax(1).clamp_min(0)
    left, found = task.weight.clone(), torch.zeros_like(task.weight)
    for index in range(width):
        if levels[index] > 1:
            scale = (high - low) / (levels[index] - 1)
            zero = torch.round(-low / scale)
            codes = (torch.round(left[:, index] / scale) + zero).clamp(torch.zeros(()), levels[index] - 1)
            found[:, index] = scale * (codes - zero)
        error = (left[:, index] - found[:, index]) / factor[index, index]
        left[:, index:] -= error[:, None] * factor[index, index:]
    return found, levels


# -- the closed form -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 200), st.floats(1, 8), st.floats(0.5, 4), st.floats(0.1, 4))
def test_the_mean_of_the_bits_is_the_budget(seed, width, mean_bits, theta, spread):
    losses = (spread * draw(seed, width)).exp()
    bits = allocate_bits(losses, mean_bits, theta)
    assert float(bits.mean()) == pytest.approx(mean_bits, abs=1e-9)
    assert float(bits.min()) >= 0
    # Among inputs that share, a bit more or less costs the same; the others would not pay for their first.
    offsets = bits - (losses + 1e-8 * losses.mean()).log2() / theta
    sharing = bits > 0
    assert float(offsets[sharing].max() - offsets[sharing].min()) < 1e-6
    assert not bool((~sharing).any()) or float(offsets[~sharing].min()) > float(offsets[sharing].min()) - 1e-6


@pytest.mark.parametrize("value", [1e-12, 0.3, 1e6])
def test_equal_losses_get_equal_bits(value):
    torch.testing.assert_close(allocate_bits(torch.full((9,), value), 3.0, 1.95), torch.full((9,), 3.0, dtype=torch.float64))


def test_sixteen_times_the_loss_gets_two_bits_more():
    losses = torch.ones(8)
    losses[5] = 16.0
    bits = allocate_bits(losses, 4.0, 2.0)
    assert float(bits[5] - bits[0]) == pytest.approx(2.0, abs=1e-6)
    assert float(bits.mean()) == pytest.approx(4.0, abs=1e-12)
    assert float(allocate_bits(losses, 4.0, 1.0)[5] - bits[0]) == pytest.approx(4.0 - 0.25, abs=1e-6)


def test_inputs_without_any_loss_get_few_bits_and_nothing_breaks():
    bits = allocate_bits(torch.tensor([1.0, 0.0, 1.0, 2.0]), 3.0, 2.0)
    assert bool(bits.isfinite().all())
    assert int(bits.argmin()) == 1
    assert float(bits.mean()) == pytest.approx(3.0, abs=1e-9)


@pytest.mark.parametrize("silent", [0, 16, 32])
def test_inputs_without_loss_leave_their_bits_to_the_others(silent):
    task = problem(7, out=24, width=64)
    task.weight[:, :silent] = 0
    found = solve(task, treatment(4))
    assert found.encoded.bits == pytest.approx(4, abs=0.1)
    assert found.loss < OBS().solve(task, grid(4)).loss


@pytest.mark.parametrize("act_order", [True, False])
def test_losses_belong_to_their_inputs_in_any_order(act_order):
    task = problem(8, out=32, width=96, unequal=1.0)
    plain, found = OBS(act_order).solve(task, grid(3)), solve(task, Treatment(OBS(act_order), grid(3), BAQ()))
    assert found.loss < 0.8 * plain.loss
    levels = found.encoded.tensors["levels"].double()
    expected = 3 + (plain.column_loss.log2() - plain.column_loss.log2().mean()) / 1.95
    torch.testing.assert_close(levels.log2(), expected.clamp_min(0), rtol=0, atol=0.3)


def test_no_loss_anywhere_is_equal_loss():
    torch.testing.assert_close(allocate_bits(torch.zeros(6), 3.0, 1.95), torch.full((6,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("losses", [[1.0, 1.0, 1.0], [1.0, 4.0, 16.0], [0.1, 3.0, 0.2]])
def test_no_other_allocation_at_the_same_mean_costs_less(losses):
    """Three inputs: measured at R bits their losses are C_j 4^-R; every allocation on a fine lattice is tried."""
    mean_bits, measured = 3.0, torch.tensor(losses, dtype=torch.float64)
    curvature = measured * 4**mean_bits
    best = allocate_bits(measured, mean_bits, 2.0)
    cost = float((curvature * 4.0**-best).sum())
    tried = torch.linspace(-2, 8, 501, dtype=torch.float64)
    first, second = torch.meshgrid(tried, tried, indexing="ij")
    lattice = torch.stack([first, second, 3 * mean_bits - first - second])
    costs = (curvature[:, None, None] * 4.0**-lattice).sum(0)
    assert cost <= float(costs.min()) * (1 + 1e-9)
    assert float(costs.min()) < 1.001 * cost
    assert cost / float(measured.sum()) == pytest.approx(float(measured.log().mean().exp() / measured.mean()), rel=1e-6)


# -- the whole method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("theta", [1.95, 2.0])
def test_it_is_the_published_method(bits, theta):
    task = problem(1, out=16, width=48, unequal=1.0)
    # Float32 holds the ends of the ranges, so that the plain form in float64 sees the same grids.
    task = replace(task, weight=task.weight.float().double())
    target = BAQ(theta).allocate(task, OBS(), grid(bits))
    measured = OBS().solve(task, grid(bits)).column_loss
    values, levels = published(task, measured, bits, theta)
    assert target.levels.tolist() == levels.tolist()
    assert len(set(levels.tolist())) > 4
    found = solve(task, treatment(bits, theta))
    torch.testing.assert_close(found.values, values, rtol=0, atol=1e-4)
    assert found.loss == pytest.approx(loss(task.weight, found.values, task.gram), rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_costs_less_than_gptq_at_the_same_rate(bits):
    for seed in range(5):
        task = problem(seed * 11, out=32, width=96, unequal=1.0)
        plain, found = OBS().solve(task, grid(bits)), solve(task, treatment(bits))
        assert found.encoded.bits == pytest.approx(bits, abs=0.1)
        assert found.loss < 0.8 * plain.loss
        assert float(found.column_loss.sum()) < 0.8 * float(plain.column_loss.sum())
        assert float(found.column_loss.std() / found.column_loss.mean()) < float(plain.column_loss.std() / plain.column_loss.mean())


@given(
    st.integers(0, 10_000), st.sampled_from([2, 3, 4, 8]), st.sampled_from([0.2, 1.0, 2.5]), st.sampled_from([torch.float32, torch.float64])
)
def test_the_result_decodes_exactly_and_its_rate_is_counted_both_ways(seed, bits, unequal, dtype):
    task = problem(seed, out=6, width=24, dtype=dtype, unequal=unequal)
    found = solve(task, treatment(bits))
    assert found.encoded.layout == "int_columns" and found.encoded.simulated
    assert torch.equal(found.encoded.decode().to(dtype), found.values)
    levels = found.encoded.tensors["levels"]
    assert int(levels.min()) >= 1 and int(levels.max()) <= MOST_LEVELS
    assert found.encoded.bits == pytest.approx(sum(math.log2(count) for count in levels.tolist()) / 24)
    assert found.encoded.fixed_width_bits == pytest.approx(sum(math.ceil(math.log2(count)) for count in levels.tolist()) / 24)
    codes = found.encoded.tensors["codes"]
    assert int(codes.min()) >= 0 and bool((codes.int() < levels.int()).all())
    assert bool((found.values[:, levels == 1] == 0).all())


def test_columns_that_cost_the_same_get_the_grid_of_gptq():
    task = problem(2, out=12, width=32)
    found = OBS().solve(task, ColumnGrid(torch.full((32,), 8, dtype=torch.int16)))
    values, levels = published(replace(task, weight=task.weight.float().double()), torch.ones(32, dtype=torch.float64), 3, 2.0)
    assert levels.tolist() == [8.0] * 32
    torch.testing.assert_close(found.values, values, rtol=0, atol=1e-4)


def test_a_matrix_of_zeros_stays_one():
    task = replace(problem(3), weight=torch.zeros(16, 32, dtype=torch.float64))
    found = solve(task, treatment(3))
    assert bool((found.values == 0).all())
    assert found.encoded.tensors["levels"].tolist() == [8] * 32


def test_uniform_shares_are_no_change():
    task = problem(4)
    assert Uniform().allocate(task, OBS(), grid(3)) == grid(3)
    assert torch.equal(solve(task, Treatment(OBS(), grid(3), Uniform())).values, OBS().solve(task, grid(3)).values)


# -- what it goes with -----------------------------------------------------------------------------------------------------


def test_what_an_earlier_step_pruned_stays_pruned():
    task = problem(5)
    mask = NM().fit(task.weight).project(task.weight) != 0
    found = solve(replace(task, weight=task.weight * mask), Treatment(OBS(), hold(grid(4), mask), BAQ()))
    assert bool((found.values[~mask] == 0).all())
    assert found.encoded.layout == "int_columns"


def test_grids_that_cannot_share_bits_are_refused():
    for target in (Int(4, 32, False), Int(4, 0), NM(), Int(4, 0, False, "mse")):
        with pytest.raises(InputError, match="asymmetric grid over the whole range of rows"):
            Treatment(OBS(), target, BAQ())
    assert treatment(3).alone and treatment(3).calibrated
    assert not RTN().expand().alone and not RTN().expand().calibrated


@pytest.mark.parametrize("solver", [Round(), AWP(2)], ids=lambda solver: solver.name)
def test_solvers_without_losses_of_inputs_are_refused(solver):
    with pytest.raises(InputError, match="one by one"):
        BAQ().allocate(problem(6), solver, grid(3))
