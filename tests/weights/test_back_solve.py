"""Back-solving: the mask is that of the other solver, and no row loses more; which masks it is worth something for."""

from __future__ import annotations

import pytest
import torch

from tests.weights.problems import correlated_gram, draw, loss, problem
from tests.weights.test_presets import best_on_mask
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.weights.base import Treatment, hold, solve
from thrifty.weights.solve.aqlm import AQLM
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.back_solve import BackSolve
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.relative_importance import RelativeImportance
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured

SOLVERS = (Round(), Round(weighted=True), RelativeImportance(), OBS(), AWP(20))
TARGETS = (TopK(0.6), Unstructured(0.5, 16), NM())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("by", SOLVERS, ids=str)
def test_the_mask_is_kept_and_no_row_loses_more(by, target):
    task = problem(1, 24, 64, unequal=1.0)
    before, after = by.solve(task, target), BackSolve(by).solve(task, target)
    assert torch.equal(after.values != 0, before.values != 0)
    assert bool((after.row_loss <= before.row_loss).all())
    assert after.loss < before.loss
    assert after.loss == pytest.approx(loss(task.weight, after.values, task.gram), rel=1e-6)
    assert torch.equal(after.encoded.decode().double(), after.values.float().double())


def test_without_damping_it_is_the_exact_solution():
    task = problem(2, 12, 48)
    found = BackSolve(Round(weighted=True), damping=0.0, steps=2000, tolerance=1e-12).solve(task, TopK(0.5)).values
    torch.testing.assert_close(found, best_on_mask(task, found != 0), rtol=1e-6, atol=1e-8)


def test_zeros_of_an_earlier_step_stay_and_treatments_compose():
    task, mask = problem(3, 10, 32), draw(4, 10, 32) > 0
    found = solve(task, Treatment(BackSolve(OBS()), hold(NM(), mask)))
    assert not bool(found.values[~mask].any()) and found.loss > 0
    assert Treatment(BackSolve(RelativeImportance()), NM()).alone and not Treatment(BackSolve(Round()), NM()).alone
    for treatment in (lambda: Treatment(BackSolve(), Int()), lambda: Treatment(BackSolve(AQLM()), TopK())):
        with pytest.raises(InputError):
            treatment()


def test_a_gram_matrix_that_is_no_number_leaves_what_the_other_solver_found():
    task = problem(5, 6, 16)
    broken = Problem(task.weight, task.gram * float("nan"), 4)
    assert torch.equal(BackSolve(Round()).solve(broken, TopK()).values, Round().solve(broken, TopK()).values)


@pytest.mark.parametrize(("sparsity", "weaker"), [(0.5, 0.5), (0.7, 0.6)])
def test_what_the_published_order_says(sparsity, weaker):
    """Wanda's mask gains most, until it costs less than SparseGPT, whose own mask still gains."""
    losses: dict[str, float] = {}
    for seed in range(3):
        task = Problem(draw(seed, 24, 128), correlated_gram(seed * 19, 128, unequal=0.4), 512)
        for name, by in (("wanda", Round(weighted=True)), ("sparsegpt", OBS())):
            for solver in (by, BackSolve(by)):
                key = name if solver is by else f"{name} back"
                losses[key] = losses.get(key, 0.0) + solver.solve(task, TopK(sparsity)).loss
    assert losses["wanda back"] < weaker * losses["wanda"]
    assert losses["sparsegpt back"] < 0.97 * losses["sparsegpt"]
    assert losses["wanda back"] < losses["sparsegpt"]
