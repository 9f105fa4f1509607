"""ALPS: masks as the target wants them, no worse than other masks with the best values, and the best mask where all can be tried."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.weights.problems import correlated_gram, draw, loss, problem
from tests.weights.test_presets import best_on_mask
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.weights.base import Treatment, hold, solve
from thrifty.weights.solve.alps import ALPS
from thrifty.weights.solve.back_solve import BackSolve
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured


@pytest.mark.parametrize("target", [TopK(0.6), Unstructured(0.5, 16), NM()], ids=lambda target: target.name)
def test_as_many_zeros_as_the_target_wants_and_their_loss(target):
    task = problem(1, 24, 64, unequal=1.0)
    found, other = ALPS().solve(task, target), Round(weighted=True).solve(task, target)
    assert int((found.values != 0).sum()) == int((other.values != 0).sum())
    if target.name == "n_m":
        assert bool(((found.values != 0).reshape(24, -1, 4).sum(-1) == 2).all())
    assert found.loss == pytest.approx(loss(task.weight, found.values, task.gram), rel=1e-6)
    assert found.loss < other.loss
    assert torch.equal(found.encoded.decode().double(), found.values.float().double())


def test_what_stays_has_the_best_values():
    task = problem(2, 12, 48)
    found = ALPS(damping=0.0, steps=2000, tolerance=1e-12).solve(task, TopK(0.5)).values
    torch.testing.assert_close(found, best_on_mask(task, found != 0), rtol=1e-6, atol=1e-8)


def test_inputs_that_have_nothing_to_do_with_each_other_leave_what_wanda_leaves():
    task = Problem(draw(3, 10, 32), torch.diag(draw(4, 32).exp()), 64)
    found = ALPS(damping=0.0).solve(task, TopK(0.5))
    assert torch.equal(found.values, Round(weighted=True).solve(task, TopK(0.5)).values)


def test_near_the_best_of_all_masks():
    """Of 8 inputs 4 stay: every choice is tried for every row."""
    lost = {"alps": 0.0, "sparsegpt": 0.0, "best": 0.0}
    for seed in range(6):
        task = problem(seed, 8, 8, unequal=0.5)
        lost["alps"] += ALPS(damping=1e-6).solve(task, TopK(0.5)).loss
        lost["sparsegpt"] += BackSolve(OBS(), damping=1e-6).solve(task, TopK(0.5)).loss
        every = []
        for chosen in itertools.combinations(range(8), 4):
            mask = torch.zeros(8, 8, dtype=torch.bool)
            mask[:, chosen] = True
            error = task.weight - best_on_mask(task, mask)
            every.append(((error @ task.gram) * error).sum(1))
        lost["best"] += float(torch.stack(every).amin(0).sum())
    assert lost["best"] <= lost["alps"] * (1 + 1e-9)
    assert lost["alps"] < 1.1 * lost["best"]
    assert lost["alps"] < lost["sparsegpt"]


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_what_the_published_order_says(sparsity):
    """On average it loses less than the best values on Wanda's mask, and on SparseGPT's."""
    losses = dict.fromkeys(("alps", "wanda back", "sparsegpt back"), 0.0)
    for seed in range(3):
        task = Problem(draw(seed, 24, 128), correlated_gram(seed * 19, 128, unequal=0.4), 512)
        for name, solver in (("alps", ALPS()), ("wanda back", BackSolve(Round(weighted=True))), ("sparsegpt back", BackSolve(OBS()))):
            losses[name] += solver.solve(task, TopK(sparsity)).loss
    assert losses["alps"] < losses["wanda back"]
    assert losses["alps"] < losses["sparsegpt back"]


@pytest.mark.parametrize("target", [TopK(0.6), Unstructured(0.5, 16), NM()], ids=lambda target: target.name)
def test_never_worse_than_the_best_values_on_wandas_mask(target):
    for seed in range(4):
        task = problem(seed, 12, 32, unequal=0.2 * seed)
        found, other = ALPS().solve(task, target), BackSolve(Round(weighted=True)).solve(task, target)
        assert found.loss <= other.loss * (1 + 1e-6)
        assert target.joint_rows or bool((found.row_loss <= other.row_loss * (1 + 1e-6) + 1e-12).all())


def test_nothing_to_prune_changes_nothing():
    task = problem(5, 6, 16)
    assert torch.equal(ALPS().solve(task, TopK(0.0)).values, task.weight)


def test_inputs_that_were_never_seen_are_the_first_to_go():
    task = problem(6, 6, 16)
    gram = task.gram.clone()
    gram[3], gram[:, 3] = 0, 0
    assert not bool(ALPS(damping=0.0).solve(Problem(task.weight, gram, 8), TopK(0.5)).values[:, 3].any())


def test_zeros_of_an_earlier_step_stay_and_targets_are_masks():
    task, mask = problem(3, 10, 32), draw(4, 10, 32) > 0
    found = solve(task, Treatment(ALPS(), hold(NM(), mask)))
    assert not bool(found.values[~mask].any()) and found.loss > 0
    with pytest.raises(InputError, match=r"alps decides which weights stay"):
        Treatment(ALPS(), Int())


def test_a_gram_matrix_that_is_no_number_leaves_the_largest_weights():
    task = problem(5, 6, 16)
    found = ALPS().solve(Problem(task.weight, task.gram * float("nan"), 4, "layer"), TopK())
    assert torch.equal(found.values, Round().solve(task, TopK()).values)
    assert "not finite" in found.warnings[0]
