"""Additive codebooks: what is held and its rate, the codes against all of them, who may reach them, and `aqlm` against the others.

Egiazarian, Panferov, Kuznedelev, Frantar, Babenko and Alistarh (2024), arXiv 2401.06118.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw, loss, problem
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Problem
from thrifty.core.codebooks import additive, kmeans
from thrifty.pipeline.steps import Step, Work
from thrifty.weights import compress_weight
from thrifty.weights.base import Treatment, hold
from thrifty.weights.preset.solve import Solve
from thrifty.weights.preset.wanda import Wanda
from thrifty.weights.solve.aqlm import AQLM
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.additive import Additive
from thrifty.weights.target.both import Both
from thrifty.weights.target.int import Int

SMALL = Additive(codebooks=2, bits=3, group_size=4)
SOLVERS = (Round(), Round(weighted=True), OBS(), AQLM(rounds=2))


# -- what is held ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("target", [SMALL, Additive(3, 2, 8, 1), Additive(1, 5, 1), Additive(2, 9, 2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_encoding_is_the_values_and_is_what_the_outline_said(solver, target, dtype):
    task = problem(1, out=12, width=32, dtype=dtype)
    found = solver.solve(task, target)
    encoded, outline = found.encoded, target.outline(12, 32)
    assert found.values.dtype == dtype
    assert torch.equal(encoded.decode(), found.values.float()) and torch.equal(encoded.decode().to(dtype), found.values)
    assert found.loss == pytest.approx(loss(task.weight, found.values, task.gram), rel=1e-4)
    assert replace(encoded, tensors={}) == replace(outline, tensors={}) and encoded.simulated
    for name, tensor in outline.tensors.items():
        assert (encoded.tensors[name].shape, encoded.tensors[name].dtype) == (tensor.shape, tensor.dtype), name
    assert torch.equal(encoded.tensors["codebooks"].half().float(), encoded.tensors["codebooks"])
    assert torch.equal(encoded.tensors["scale"].bfloat16().float(), encoded.tensors["scale"])
    assert int(encoded.tensors["codes"].long().max()) < 2**target.bits
    part = encoded.rows(3, 7)
    assert torch.equal(part.decode(), encoded.decode()[3:7])


def test_the_values_are_sums_of_codewords_times_scales():
    encoded = AQLM().solve(problem(2, out=6, width=16), SMALL).encoded
    values, parts = encoded.decode(), encoded.tensors
    for row, column in product(range(6), range(16)):
        group, place = divmod(column, 4)
        words = sum(float(parts["codebooks"][stage, int(parts["codes"][row, group, stage]), place]) for stage in range(2))
        assert float(values[row, column]) == pytest.approx(words * float(parts["scale"][row, 0]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("target", [Additive(), Additive(4, 4), Additive(1, 12, 8), Additive(2, 8, 9)], ids=str)
def test_the_rate_counts_every_code_codebook_and_scale(target):
    out, width = 128, 72
    encoded = target.outline(out, width)
    parts = encoded.tensors
    stored = parts["codes"].numel() * target.bits + 16 * parts["codebooks"].numel() + 16 * parts["scale"].numel()
    assert encoded.bits == encoded.fixed_width_bits == pytest.approx(stored / (out * width))
    assert encoded.stored_bits == pytest.approx(stored, abs=1)
    expected = target.codebooks * target.bits / target.group_size + 16 * target.codebooks * 2**target.bits * target.group_size / (
        out * width
    )
    assert encoded.bits == pytest.approx(expected + 16 / width)


# -- which codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_a_projection_with_a_full_beam_is_the_nearest_of_all_sums(weighted):
    weight = draw(3, 5, 8)
    importance = draw(4, 8).exp() if weighted else None
    target = Additive(2, 2, 4, beam=16)
    points = target.fit(weight, importance)
    values = points.project(weight)
    costs = torch.ones(8) if importance is None else importance
    for row, group in product(range(5), range(2)):
        part = slice(4 * group, 4 * group + 4)
        sums = [points.codebooks[0, first] + points.codebooks[1, second] for first, second in product(range(4), repeat=2)]
        errors = [float(((weight[row, part] - words * points.scale[row]).square() * costs[part]).sum()) for words in sums]
        assert float(((weight[row, part] - values[row, part]).square() * costs[part]).sum()) == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_as_many_entries_as_distinct_groups_lose_nothing(solver):
    """Rows of signs have a scale of 1, so that nothing is rounded."""
    words = draw(5, 8, 4).sign()
    weight = words[torch.randint(8, (16, 6), generator=torch.Generator().manual_seed(0))].flatten(1)
    task = Problem(weight.float(), correlated_gram(6, 24).float(), 96, "layer")
    found = solver.solve(task, Additive(1, 3, 4))
    torch.testing.assert_close(found.values, task.weight, rtol=1e-3, atol=1e-3)
    assert found.loss < 1e-6 * loss(task.weight, torch.zeros_like(task.weight), task.gram)


def test_more_codebooks_lose_less():
    weight = draw(7, 32, 64, dtype=torch.float32)
    losses = [Round().solve(Problem(weight, torch.eye(64), 0), Additive(count, 4)).loss for count in (1, 2, 3, 4)]
    assert all(after < 0.8 * before for before, after in pairwise(losses))


def test_the_chunks_that_are_searched_at_a_time_change_nothing(monkeypatch):
    task = problem(8, dtype=torch.float32)
    expected = AQLM().solve(task, SMALL).values
    monkeypatch.setattr(additive, "CHUNK", 64)
    monkeypatch.setattr(kmeans, "CHUNK", 64)
    torch.testing.assert_close(AQLM().solve(task, SMALL).values, expected)


# -- aqlm --------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.floats(0, 2))
def test_rounds_never_cost_more_and_equal_problems_have_equal_results(seed, codebooks, bits, beam, unequal):
    task, target = problem(seed, out=8, width=16, dtype=torch.float32, unequal=unequal), Additive(codebooks, bits, 4, beam)
    damped = task.gram.clone()
    damped.diagonal().add_(AQLM().damping * task.gram.diagonal().mean())
    found = [AQLM(rounds=rounds, tolerance=0).solve(task, target) for rounds in (0, 1, 3)]
    losses = [loss(task.weight, one.values, damped) for one in found]
    assert all(after <= before * (1 + 1e-5) + 1e-7 for before, after in pairwise(losses))
    nearest = target.fit(task.weight, damped.diagonal().sqrt()).project(task.weight)
    assert losses[0] <= loss(task.weight, nearest, damped) * (1 + 1e-5) + 1e-7
    assert torch.equal(AQLM(rounds=3, tolerance=0).solve(task, target).values, found[-1].values)


def test_fitting_to_the_outputs_pays_over_residual_k_means_and_over_the_sweep():
    ratios = []
    for seed in range(4):
        task = problem(seed, out=64, width=64, dtype=torch.float32)
        plain, weighed, swept, found = (solver.solve(task, Additive(2, 4)).loss for solver in (Round(), Round(True), OBS(), AQLM()))
        assert found < 0.85 * swept < swept < 0.85 * weighed < weighed < plain
        ratios.append(found / plain)
    assert sum(ratios) / 4 < 0.4


def test_about_two_bits_lose_less_than_gptq_on_correlated_gaussians():
    """GPTQ's grids at 2.25 bits with their scales against sums of codewords, everything counted."""
    target = Additive(4, 4)
    assert target.rate(512, 64) < 2.52
    for seed in range(2):
        task = problem(seed, out=512, width=64, dtype=torch.float32)
        grids = [OBS(act_order=True).solve(task, Int(2, size, True, "mse")).loss for size in (0, 32)]
        assert AQLM().solve(task, target).loss < 0.9 * min(grids)


def test_inputs_that_were_never_seen_keep_about_their_weights():
    task = problem(9, out=64, width=32, dtype=torch.float32)
    task.gram[8:16] = 0
    task.gram[:, 8:16] = 0
    found = AQLM().solve(task, Additive(4, 4))
    error = (found.values - task.weight)[:, 8:16].square().sum() / task.weight[:, 8:16].square().sum()
    assert float(error) < 0.5


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_odd_matrices(solver):
    gram = torch.eye(8)
    for weight in (torch.zeros(4, 8), torch.ones(1, 8), 1e-30 * torch.ones(3, 8), 1e4 * draw(1, 3, 8).float()):
        found = solver.solve(Problem(weight, gram, 8), SMALL)
        assert bool(found.values.isfinite().all()) and torch.equal(found.values, found.encoded.decode())
        torch.testing.assert_close(found.values, weight, rtol=0.5, atol=0.5 * float(weight.abs().max()) + 1e-29)
    dark = solver.solve(Problem(draw(2, 3, 8).float(), torch.zeros(8, 8), 8), SMALL)
    assert bool(dark.values.isfinite().all()) and dark.loss < 1e-9


def test_a_gram_matrix_that_is_not_finite_is_said_and_not_used():
    task = problem(10, dtype=torch.float32)
    task.gram[3, 3] = torch.inf
    found = AQLM().solve(task, SMALL)
    assert found.warnings and "not finite" in found.warnings[0]
    assert torch.equal(found.values, Round().solve(task, SMALL).values)


# -- who may -----------------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="aqlm fits codebooks, and int has none; use into: additive"):
        Solve(by=AQLM())
    with pytest.raises(InputError, match="awp cannot be used with additive, where entries share codes"):
        Solve(by=AWP(), into=Additive())
    with pytest.raises(InputError, match="act_order cannot be used with additive"):
        Solve(by=OBS(act_order=True), into=Additive())
    with pytest.raises(InputError, match="mask must be one of top_k"):
        Both(mask=Additive())
    with pytest.raises(InputError, match="additive cannot keep the zeros of an earlier step"):
        hold(Additive(), torch.ones(4, 8, dtype=torch.bool))


def test_a_recipe_in_which_codebooks_follow_another_step_is_refused_before_it_runs():
    pruned, coded = Step("wanda", {"up": Wanda()}), Step("solve", {"up": Solve(by=AQLM(), into=Additive())})
    with pytest.raises(InputError, match="step 2: additive cannot keep the zeros of an earlier step"):
        Work.of([pruned, coded])
    assert len(Work.of([coded, pruned]).treatments["up"]) == 2


@pytest.mark.parametrize(("width", "said"), [(12, "group_size 8 does not divide the width 12 of weight; 6 does"), (7, "; 7 does")])
def test_groups_that_do_not_divide_the_width_are_refused(width, said):
    with pytest.raises(InputError, match=said):
        compress_weight(torch.ones(4, width), Treatment(Round(), Additive()))


def test_matrices_with_codebooks_of_their_own_are_not_stacked():
    assert Treatment(AQLM(), Additive()).alone


def test_only_what_was_decided_last_can_be_encoded():
    weight = draw(11, 4, 8).float()
    points = SMALL.fit(weight)
    values = points.project(weight)
    points.encode(values)
    with pytest.raises(RunError, match="only what was decided last"):
        points.encode(values + 1)
