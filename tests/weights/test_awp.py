"""AWP against projected gradient descent written down plainly, and the promises that the step length makes.

Liu, Koike-Akino, Wang, Mansour and Brand (2025), arXiv 2506.10205.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw, loss, problem
from thrifty.base.records import Problem
from thrifty.core.linalg import HARDLY_SEEN, largest_eigenvalue
from thrifty.weights.base import hold
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.both import Both
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured

TARGETS = (TopK(0.5), TopK(0.75), NM(), Unstructured(0.6, 0), Int(3, 8), Int(4, 0, False, "mse"), Both(NM(), Int(4, 8)))


def keep(target, gain: torch.Tensor) -> torch.Tensor:
    """The mask of the largest gains, by sorting."""
    if isinstance(target, Unstructured):
        count = round(gain.numel() * (1 - target.sparsity))
        return gain >= gain.flatten().sort(descending=True).values[count - 1]
    if isinstance(target, NM):
        runs = gain.reshape(gain.shape[0], -1, target.m)
        return (runs >= runs.sort(-1, descending=True).values[..., target.n - 1 : target.n]).reshape(gain.shape)
    return gain >= gain.sort(-1, descending=True).values[:, target.kept(gain.shape[1]) - 1 :][:, :1]


def better(task: Problem, target, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The row with the smaller loss, or the matrix where rows belong together."""
    costs = [(((task.weight - values) @ task.gram) * (task.weight - values)).sum(1) for values in (one, other)]
    wins = (costs[1].sum() < costs[0].sum()).expand_as(costs[0]) if target.joint_rows else costs[1] < costs[0]
    return torch.where(wins[:, None], other, one)


def descent(task: Problem, target, precondition: bool, steps: int) -> list[torch.Tensor]:
    """T_0, T_1, ...: T <- Proj(T + (W - T) C D^-1), the projection being exact in the norm of D."""
    weight, gram = task.weight, task.gram
    diagonal = gram.diagonal()
    metric = diagonal.clamp_min(HARDLY_SEEN * diagonal.mean())
    importance = metric if precondition else torch.ones_like(diagonal)
    grid = target.grid if isinstance(target, Both) else target
    points = grid.fit(weight, metric if precondition else None) if isinstance(grid, Int) else None

    def project(values: torch.Tensor) -> torch.Tensor:
        if isinstance(target, Int):
            return points.project(values)
        if isinstance(target, Both):
            rounded = points.project(values)
            return torch.where(keep(target.mask, importance * (values**2 - (values - rounded) ** 2)), rounded, 0.0)
        return torch.where(keep(target, values.abs() * importance.sqrt()), values, 0.0)

    root = importance.sqrt()
    length = 1 / (largest_eigenvalue(gram / (root[:, None] * root)) * importance)
    found = [better(task, target, project(weight), project(target.fit(weight, diagonal).project(weight)))]
    for _ in range(steps):
        found.append(project(found[-1] + (weight - found[-1]) @ gram * length))
    return found


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("precondition", [True, False])
def test_every_step_is_that_of_projected_gradient_descent_and_none_raises_the_loss(target, precondition):
    task = problem(1, out=12, width=32)
    iterates = descent(task, target, precondition, 12)
    losses = [loss(task.weight, values, task.gram) for values in iterates]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(losses))
    for steps in (1, 2, 3, 5, 8, 12):
        found = AWP(steps, 0.0, precondition, "nearest").solve(task, target)
        torch.testing.assert_close(found.values, iterates[steps], rtol=1e-9, atol=1e-9)
        assert found.loss == pytest.approx(losses[steps], rel=1e-8)
        assert found.details["start_loss"] == pytest.approx(losses[0], rel=1e-8)
    stuck = isinstance(target, Int) and not precondition
    assert losses[-1] < losses[0] or stuck


def test_the_step_is_as_long_as_the_largest_eigenvalue_allows():
    for seed in range(5):
        gram = correlated_gram(seed, 32)
        root = gram.diagonal().sqrt()
        scaled = gram / (root[:, None] * root)
        rho = float(torch.linalg.eigvalsh(scaled)[-1])
        assert rho <= float(largest_eigenvalue(scaled)) <= 1.006 * rho


@given(
    st.integers(0, 10_000),
    st.sampled_from(TARGETS),
    st.booleans(),
    st.lists(st.tuples(st.floats(1e-3, 1), st.floats(0, 0.02), st.integers(1, 8)), min_size=1, max_size=4),
    st.floats(0, 3),
)
def test_no_step_raises_the_loss_whatever_the_spectrum(seed, target, precondition, clusters, unequal):
    """Clusters of eigenvalues, where a step that is a little too long would show, on inputs of unequal size."""
    spectrum = torch.cat([top * (1 - spread * torch.linspace(0, 1, count)) for top, spread, count in clusters]).double()
    width = 16
    vectors = torch.linalg.qr(draw(seed, width, width)).Q[:, : spectrum.numel()]
    size = (unequal * draw(seed + 1, width)).exp()
    gram = (vectors * spectrum[:width]) @ vectors.T * size[:, None] * size
    task = Problem(draw(seed + 2, 4, width), (gram + gram.T) / 2, 64)
    losses = [loss(task.weight, values, task.gram) for values in descent(task, target, precondition, 6)]
    assert all(after <= before * (1 + 1e-9) + 1e-12 for before, after in pairwise(losses))
    found = AWP(6, 0.0, precondition, "nearest").solve(task, target)
    assert found.loss == pytest.approx(losses[-1], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("precondition", [True, False])
def test_it_never_costs_more_than_rounding_or_than_the_sweep_of_obs(target, precondition):
    """From the better of both, row by row where rows are on their own, no step leads upwards."""
    for seed in range(4):
        task = problem(seed * 13, out=12, width=32)
        importance = task.gram.diagonal() if precondition else None
        nearest = target.fit(task.weight, importance).project(task.weight)
        points = target.fit(task.weight, importance)
        weighted = points.project(target.fit(task.weight, task.gram.diagonal()).project(task.weight))
        swept = OBS(act_order=not target.run).reach(task.weight, task.gram, target.fit(task.weight, importance), target.run)
        starts = (nearest, weighted, swept.values)
        costs = torch.stack([((task.weight - values) @ task.gram * (task.weight - values)).sum(1) for values in starts])
        expected = float(costs.sum(1).min() if target.joint_rows else costs.amin(0).sum())
        runs = [AWP(steps, 0.0, precondition).solve(task, target) for steps in (1, 4, 16, 64)]
        assert runs[0].details["start_loss"] == pytest.approx(expected, rel=1e-9)
        assert expected < float(costs[0].sum())
        losses = [expected, *(run.loss for run in runs)]
        assert all(after <= before * (1 + 1e-9) for before, after in pairwise(losses))
        assert losses[-1] < 0.95 * losses[0] or isinstance(target, Int | Both)
        for run in runs:
            assert run.loss == pytest.approx(loss(task.weight, run.values, task.gram), rel=1e-9)


def test_a_start_from_obs_pays_on_grids():
    found = {
        (start, target): sum(AWP(start=start).solve(problem(seed * 13, out=24, width=64), target).loss for seed in range(4))
        for start in ("nearest", "obs")
        for target in (Int(4, 32), Both(NM(), Int(4, 32)))
    }
    assert found["obs", Int(4, 32)] < 0.8 * found["nearest", Int(4, 32)]
    assert found["obs", Both(NM(), Int(4, 32))] < 0.8 * found["nearest", Both(NM(), Int(4, 32))]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_longer_runs_are_never_worse(target):
    task = problem(2, out=12, width=32)
    losses = [AWP(steps, 0.0, start="nearest").solve(task, target).loss for steps in (1, 2, 4, 8, 16, 32, 64, 128)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("precondition", [True, False])
def test_white_inputs_give_the_nearest_point(target, precondition):
    task = replace(problem(3, out=12), gram=2.5 * torch.eye(32, dtype=torch.float64))
    found = AWP(precondition=precondition).solve(task, target)
    expected = target.fit(task.weight, task.gram.diagonal() if precondition else None).project(task.weight)
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_inputs_without_correlation_give_the_nearest_weighted_point(target):
    task = replace(problem(4, out=12), gram=torch.diag(draw(5, 32).exp()))
    found = AWP().solve(task, target)
    expected = Round(weighted=True).solve(task, target)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precondition", [True, False])
def test_pruning_costs_less_than_wanda_and_magnitude(precondition):
    for seed in range(6):
        task = problem(seed * 13, out=24, width=64, unequal=0.4)
        for target in (TopK(0.5), NM(), Unstructured(0.5, 0)):
            found = AWP(200, precondition=precondition, start="nearest").solve(task, target)
            start = Round(weighted=precondition).solve(task, target)
            assert found.loss < 0.8 * start.loss
            if precondition:
                assert found.details["start_loss"] == pytest.approx(start.loss, rel=1e-9)


def test_quantizing_costs_less_than_rounding_and_plain_steps_stay_where_they_start():
    better, rounded = 0.0, 0.0
    for seed in range(6):
        task = problem(seed * 13, out=24, width=64)
        target = Int(4, 32)
        plain = Round().solve(task, target)
        found = AWP(start="nearest").solve(task, target)
        assert found.loss <= plain.loss * (1 + 1e-9)
        better, rounded = better + found.loss, rounded + plain.loss
        moved = AWP(precondition=False, start="nearest").solve(task, target).values != plain.values
        assert float(moved.double().mean()) < 0.005
    assert better < 0.97 * rounded


def test_pruning_and_rounding_in_one_go_costs_less_than_one_after_the_other():
    for start, gain in (("nearest", 0.9), ("obs", 0.7)):
        for seed in range(6):
            task = problem(seed * 29, out=24, width=64)
            pruned = Round(weighted=True).solve(task, NM()).values
            rounded = Int(4, 32).fit(pruned).project(pruned)
            found = AWP(start=start).solve(task, Both(NM(), Int(4, 32)))
            assert found.loss < gain * loss(task.weight, rounded, task.gram)
            assert torch.equal(found.encoded.decode().double(), found.values)


@given(st.integers(0, 10_000), st.sampled_from(TARGETS), st.booleans())
def test_results_lie_in_the_target_and_the_loss_is_the_loss(seed, target, precondition):
    task = problem(seed, out=5, width=16)
    found = AWP(20, precondition=precondition).solve(task, target)
    values = found.values
    error = task.weight - values
    torch.testing.assert_close(found.row_loss, ((error @ task.gram) * error).sum(1), rtol=1e-9, atol=1e-12)
    assert torch.equal(found.encoded.decode().double(), values.float().double())
    if isinstance(target, TopK):
        assert (values != 0).sum(1).tolist() == [target.kept(16)] * 5
    elif isinstance(target, NM):
        assert bool(((values.reshape(5, 4, 4) != 0).sum(-1) == 2).all())
    elif isinstance(target, Unstructured):
        assert int((values == 0).sum()) == 48
    else:
        grid = target.grid if isinstance(target, Both) else target
        points = grid.fit(task.weight, task.gram.diagonal() if precondition else None)
        assert torch.equal(points.project(values), values)


def test_a_mask_over_all_rows_keeps_its_count_when_something_is_held():
    for seed in (0, 1, 2, 54):
        task = problem(seed, out=8, width=32)
        mask = draw(seed + 1, 8, 32) > -1.5
        found = AWP(100, 0.0).solve(task, hold(Unstructured(0.9, 0), mask))
        assert bool((found.values[~mask] == 0).all())
        assert int((found.values != 0).sum()) == 26


def test_a_step_that_moves_little_is_the_last():
    task = problem(6)
    assert AWP(100, 1e9).solve(task, TopK()).details["iterations"] == 1
    assert AWP(100, 0.0).solve(task, TopK()).details["iterations"] == 100
    some = AWP(10_000, 1e-3).solve(task, TopK()).details["iterations"]
    assert 1 < some < AWP(10_000, 1e-5).solve(task, TopK()).details["iterations"] < 10_000


@pytest.mark.parametrize("start", ["nearest", "obs"])
def test_a_gram_matrix_that_is_not_finite_gives_the_nearest_point_and_says_so(start):
    task = problem(9)
    gram = task.gram.clone()
    gram[2, 5] = gram[5, 2] = float("nan")
    found = AWP(start=start).solve(replace(task, gram=gram), Int(4, 8))
    assert torch.equal(found.values, Int(4, 8).fit(task.weight).project(task.weight))
    assert len(found.warnings) == 1 and found.warnings[0].startswith("layer: ")
    assert AWP(start=start).solve(task, Int(4, 8)).warnings == ()


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("target", [TopK(), Int(4, 8)], ids=str)
def test_silent_inputs_and_silent_layers_are_no_trouble(precondition, target):
    gram = correlated_gram(7, 32, tokens=6)
    gram[3] = gram[:, 3] = 0
    for matrix in (gram, torch.zeros(32, 32, dtype=torch.float64)):
        task = replace(problem(8), gram=matrix)
        found = AWP(20, precondition=precondition).solve(task, target)
        assert bool(found.values.isfinite().all())
        assert found.loss == pytest.approx(loss(task.weight, found.values, matrix), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("start", ["nearest", "obs"])
@pytest.mark.parametrize("target", [TopK(0.5), NM(), Unstructured(0.5, 0)], ids=str)
def test_weights_of_inputs_that_were_never_seen_go_first(target, start, precondition):
    """Where half of the inputs are dead, pruning half of the weights costs nothing, and never more than Wanda."""
    gram = correlated_gram(10, 32)
    gram[2::4] = gram[:, 2::4] = gram[3::4] = gram[:, 3::4] = 0
    task = replace(problem(11), gram=gram)
    assert Round(weighted=True).solve(task, target).loss == 0
    assert AWP(precondition=precondition, start=start).solve(task, target).loss == 0


def test_a_diagonal_gram_with_zeros_gives_wanda():
    diagonal = draw(12, 32).exp()
    diagonal[[3, 4, 17]] = 0
    task = replace(problem(13), gram=torch.diag(diagonal))
    for target in (TopK(0.5), NM()):
        assert AWP().solve(task, target).loss == pytest.approx(Round(weighted=True).solve(task, target).loss, rel=1e-12)


def test_weights_of_inputs_that_were_hardly_seen_stay_small():
    """In float32 the slope at an input of tiny energy is rounding error; divided by that energy it would be anything."""
    inputs = draw(14, 512, 128, dtype=torch.float32) @ draw(15, 128, 128, dtype=torch.float32) / 11
    inputs[:, 10:20] *= 1e-3
    inputs[:, 50:56] *= 1e-6
    task = Problem(draw(16, 64, 128, dtype=torch.float32), inputs.T @ inputs / 512, 512)
    for start in ("nearest", "obs"):
        found = AWP(start=start).solve(task, TopK(0.5))
        assert float(found.values.abs().max()) < 4 * float(task.weight.abs().max())
        assert found.loss < 0.8 * Round(weighted=True).solve(task, TopK(0.5)).loss
