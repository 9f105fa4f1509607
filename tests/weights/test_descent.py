"""Coordinate descent against a plain loop, exact least squares, and every single move that could improve a result.

Behdin, Acharya, Gupta, Song, Zhu, Keerthi and Mazumder (2023), QuantEase, arXiv 2309.01885.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw, loss, problem
from thrifty.base.records import Problem
from thrifty.core.grids import code_limits
from thrifty.weights.allocate.baq import BAQ
from thrifty.weights.base import Target, hold
from thrifty.weights.solve.descent import Descent
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.both import Both
from thrifty.weights.target.fixed import Fixed
from thrifty.weights.target.float import SmallFloat
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.posit import Posit
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured

MASKS = (TopK(0.5), NM(), Unstructured(0.5, 0))
GRIDS = (Int(2, 8, False, "mse"), Int(3, 8), Int(4, 0, False), SmallFloat(group_size=16), Posit(5, 1), Fixed(4, 16))
TARGETS = (*MASKS, *GRIDS, Both(NM(), Int(4, 8, False)))
LONG = Descent(2, 200)


def plain_sweep(task: Problem, values: torch.Tensor, points) -> torch.Tensor:
    """Each entry in turn to the point nearest to where the loss has its least value, the others being as they are."""
    values = values.clone()
    for index in range(values.shape[1]):
        rest = (task.weight - values) @ task.gram[:, index]
        aim = values[:, index] + rest / task.gram[index, index]
        points.snap(aim, index, values[:, index])
    return values


@pytest.mark.parametrize("target", [Int(3, 8), Int(2, 0, False, "mse"), SmallFloat(group_size=16), Both(NM(), Int(4, 8))], ids=str)
@pytest.mark.parametrize("sweeps", [1, 3])
def test_it_is_the_sweep_of_obs_then_plain_coordinate_descent_with_scales_fitted_in_between(target: Target, sweeps: int):
    task = problem(1, out=12, width=48)
    points = target.fit(task.weight, task.gram.diagonal().sqrt())
    values = OBS(not target.run).reach(task.weight, task.gram, points, target.run).values
    if not points.adaptive:
        points, values = points.refit(values, task.weight, task.gram)
    for _ in range(sweeps):
        values = plain_sweep(task, values, points)
        points, values = points.refit(values, task.weight, task.gram)
    found = Descent(1, sweeps).solve(task, target)
    torch.testing.assert_close(found.values, values, rtol=1e-9, atol=1e-12)
    assert found.loss == pytest.approx(loss(task.weight, values, task.gram), rel=1e-9)


@pytest.mark.parametrize("target", [*GRIDS, hold(Int(3, 8, False), draw(9, 12, 32) > -1)], ids=str)
def test_no_single_entry_can_be_improved(target: Target):
    """Each code of the final grids, in each place, with all others as they are."""
    task = problem(2, out=12, width=32)
    found = LONG.solve(task, target)
    if isinstance(target, Int | Posit | Fixed | SmallFloat):
        every = choices(target, found)
        allowed = torch.ones_like(found.values, dtype=torch.bool)
    else:
        every, allowed = choices(target.target, found), target.mask
        assert bool((found.values[~allowed] == 0).all())
    slope = (task.weight - found.values) @ task.gram
    step = every - found.values[..., None]
    added = step * (step * task.gram.diagonal()[:, None] - 2 * slope[..., None])
    assert float(added[allowed].min()) >= -1e-9 * found.loss
    assert found.loss < found.details["start_loss"]


def choices(target: Target, found) -> torch.Tensor:
    """[out, in, codes]: what each entry could be."""
    tensors, width = found.encoded.tensors, found.values.shape[1]
    scale = tensors["scale"].double().repeat_interleave(width // tensors["scale"].shape[1], 1)
    if not isinstance(target, Int):
        numbers = target.form.numbers[~target.form.numbers.isnan()].double()
        return (numbers[numbers != 0] if target.form.never_zero else numbers) * scale[..., None]
    smallest, largest = code_limits(target.level_count)
    codes = torch.arange(smallest, largest + 1, dtype=torch.float64).expand(*found.values.shape, -1)
    if not target.symmetric:
        codes = codes - tensors["zero_point"].double().repeat_interleave(width // scale_count(tensors), 1)[..., None]
    return codes * scale[..., None]


def scale_count(tensors: dict[str, torch.Tensor]) -> int:
    return tensors["scale"].shape[1]


@pytest.mark.parametrize("target", [Int(2, 0, False), Int(2, 0), Int(group_size=0, levels=3)], ids=str)
def test_on_tiny_matrices_it_is_often_as_good_as_trying_everything(target: Int):
    """All codes on the final grid: never better than the best, which it finds for most rows."""
    best, rows = 0, 0
    for seed in range(6):
        task = problem(seed, out=8, width=5, unequal=0.4)
        found = Descent(4, 100).solve(task, target)
        every = choices(target, found)
        combinations = torch.tensor(list(itertools.product(range(every.shape[2]), repeat=5)))
        values = every[:, torch.arange(5), :][:, torch.arange(5), combinations]
        error = task.weight[:, None] - values
        least = torch.einsum("rci,ij,rcj->rc", error, task.gram, error).amin(1)
        assert bool((found.row_loss >= least * (1 - 1e-9)).all())
        best += int((found.row_loss <= least * (1 + 1e-9)).sum())
        rows += 8
    assert best > 0.7 * rows


@pytest.mark.parametrize("target", MASKS, ids=str)
def test_under_a_mask_it_goes_to_the_least_squares(target: Target):
    task = problem(3, out=6, width=32, unequal=0.1)
    found = Descent(1, 300).solve(task, target)
    expected = torch.zeros_like(found.values)
    for row, values in enumerate(found.values):
        kept = values.nonzero()[:, 0]
        expected[row, kept] = torch.linalg.solve(task.gram[kept][:, kept], task.gram[kept] @ task.weight[row])
    torch.testing.assert_close(found.values, expected, rtol=0.01, atol=2e-3)
    swept = OBS(not target.run).solve(task, target)
    assert torch.equal(found.values != 0, swept.values != 0)
    assert found.loss < swept.loss


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_it_never_costs_more_than_obs_and_longer_is_never_worse(target: Target):
    for seed in range(3):
        task = problem(seed * 13, out=12, width=32)
        swept = OBS(not target.run).solve(task, target).loss
        losses = [Descent(1, sweeps).solve(task, target).loss for sweeps in (1, 2, 4, 16)]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] < swept
        assert Descent(4, 1).solve(task, target).loss < swept


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_costs_much_less_than_obs_at_few_bits(bits: int, symmetric: bool):
    found, swept = 0.0, 0.0
    for seed in range(4):
        task, target = problem(seed * 13, out=24, width=64), Int(bits, 16, symmetric, "mse")
        swept += OBS(True).solve(task, target).loss
        found += Descent().solve(task, target).loss
    assert found < {2: 0.8, 3: 0.9, 4: 0.92}[bits] * swept


@pytest.mark.parametrize("target", GRIDS, ids=str)
def test_inputs_without_correlation_give_the_nearest_point_of_the_final_grid(target: Target):
    task = replace(problem(4, out=12), gram=torch.diag(draw(5, 32).exp()))
    found = LONG.solve(task, target)
    nearest = (choices(target, found) - task.weight[..., None]).abs().amin(-1)
    torch.testing.assert_close((found.values - task.weight).abs(), nearest, rtol=1e-9, atol=1e-12)
    assert found.loss <= Round(weighted=True).solve(task, target).loss


@given(st.integers(0, 10_000), st.sampled_from(TARGETS), st.sampled_from([torch.float32, torch.float64]))
def test_results_lie_in_the_target_and_the_loss_is_the_loss(seed: int, target: Target, dtype: torch.dtype):
    task = problem(seed, out=5, width=16, dtype=dtype)
    found = Descent(2, 2).solve(task, target)
    rounding = 1e-9 if dtype == torch.float64 else 1e-3
    assert found.values.dtype == dtype
    assert found.loss == pytest.approx(loss(task.weight, found.values, task.gram), rel=rounding, abs=1e-5)
    assert found.loss <= OBS(not target.run).solve(task, target).loss * (1 + rounding)
    assert torch.equal(found.encoded.decode().double(), found.values.float().double())
    if isinstance(target, NM | Both):
        assert int((found.values.reshape(5, 4, 4) != 0).sum(-1).max()) <= 2


def test_bits_can_be_shared_out_among_the_inputs():
    task, target = problem(5, out=12), Int(3, 0, False)
    solver = Descent()
    shared = BAQ().allocate(task, solver, target)
    assert torch.equal(shared.levels, BAQ().allocate(task, OBS(True), target).levels)
    assert solver.solve(task, shared).loss < OBS(True).solve(task, shared).loss


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_silent_inputs_and_silent_layers_are_no_trouble(target: Target):
    gram = correlated_gram(7, 32, tokens=6)
    gram[3] = gram[:, 3] = 0
    for matrix in (gram, torch.zeros(32, 32, dtype=torch.float64)):
        task = replace(problem(8), gram=matrix)
        found = Descent().solve(task, target)
        assert bool(found.values.isfinite().all())
        assert found.loss == pytest.approx(loss(task.weight, found.values, matrix), rel=1e-8, abs=1e-12)


def test_a_gram_matrix_that_is_not_finite_gives_the_nearest_point_and_says_so():
    task = problem(9)
    gram = task.gram.clone()
    gram[2, 5] = gram[5, 2] = float("nan")
    found = Descent().solve(replace(task, gram=gram), Int(4, 8))
    assert torch.equal(found.values, OBS(True).solve(replace(task, gram=gram), Int(4, 8)).values)
    assert len(found.warnings) == 1 and found.warnings[0].startswith("layer: ")
    assert Descent().solve(task, Int(4, 8)).warnings == ()
