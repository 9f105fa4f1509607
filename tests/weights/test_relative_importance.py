"""Relative importance: the published score by plain loops, and exact counts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw, loss, problem
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.weights.base import Treatment, hold, solve
from thrifty.weights.preset.magnitude import Magnitude
from thrifty.weights.preset.ria import RIA
from thrifty.weights.solve.relative_importance import RelativeImportance
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured


def scores(weight: torch.Tensor, inputs: torch.Tensor, power: float) -> list[list[float]]:
    """The formula, entry by entry."""
    rows, columns = weight.shape
    norms = [float(inputs[:, column].norm()) for column in range(columns)]
    by_row = [sum(abs(float(weight[row, column])) for column in range(columns)) for row in range(rows)]
    by_column = [sum(abs(float(weight[row, column])) for row in range(rows)) for column in range(columns)]
    return [
        [
            (abs(float(weight[row, column])) / by_row[row] + abs(float(weight[row, column])) / by_column[column]) * norms[column] ** power
            for column in range(columns)
        ]
        for row in range(rows)
    ]


@given(st.integers(0, 10_000), st.integers(2, 16), st.sampled_from(["0.25", "0.5", "0.7"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_smallest_scores_of_the_matrix_are_dropped(seed, width, sparsity, power):
    inputs = draw(seed, 30, width) * draw(seed + 1, width).exp()
    weight = draw(seed + 2, 5, width)
    found = solve(Problem(weight, inputs.T @ inputs / 30, 30), RIA(float(sparsity), power=power).expand()).values
    flat = [score for row in scores(weight, inputs, power) for score in row]
    dropped = set(sorted(range(len(flat)), key=flat.__getitem__)[: round(float(Fraction(sparsity) * len(flat)))])
    expected = [0.0 if place in dropped else value for place, value in enumerate(weight.flatten().tolist())]
    assert found.flatten().tolist() == expected


def test_a_pattern_chooses_within_each_run():
    inputs, weight = draw(3, 50, 24) * draw(4, 24).exp(), draw(5, 6, 24)
    found = solve(Problem(weight, inputs.T @ inputs / 50, 50), RIA(pattern="2:4").expand()).values
    score = torch.tensor(scores(weight, inputs, 0.5), dtype=torch.float64).reshape(6, 6, 4)
    expected = weight.reshape(6, 6, 4) * (score >= score.sort(-1).values[..., 2:3])
    assert torch.equal(found, expected.reshape(6, 24))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [TopK(0.3), Unstructured(0.7, 0), NM()], ids=lambda target: target.name)
def test_counts_are_exact_even_where_weights_or_inputs_are_nothing(target, dtype):
    task = problem(1, 12, 32, dtype)
    weight, gram = task.weight.clone(), task.gram.clone()
    weight[3], weight[:, 5] = 0, 0
    gram[7], gram[:, 7] = 0, 0
    solver = RelativeImportance()
    found = solver.solve(Problem(weight, gram, 9), target)
    assert int((found.values != 0).sum()) <= round(target.density(32) * 12 * 32)
    untouched = found.values != 0
    assert torch.equal(found.values[untouched], weight[untouched])
    assert found.loss == pytest.approx(loss(weight, found.values, gram), rel=1e-4)
    full = solver.solve(task, target)
    assert int((full.values != 0).sum()) == pytest.approx(target.density(32) * 12 * 32, abs=0.5)


def test_nothing_to_prune_leaves_every_bit():
    task = problem(10)
    assert torch.equal(solve(task, RIA(0.0).expand()).values, task.weight)
    assert torch.equal(solve(task, RIA(pattern="4:4").expand()).values, task.weight)


def test_what_an_earlier_step_pruned_stays_pruned_and_rows_count_together():
    task, mask = problem(2, 10, 40), draw(3, 10, 40) > -0.5
    found = RelativeImportance().solve(task, hold(Unstructured(0.6, 0), mask))
    assert not bool(found.values[~mask].any())
    treatment = Treatment(RelativeImportance(), TopK())
    assert treatment.alone and treatment.calibrated
    assert not Treatment(RelativeImportance(0.0), TopK()).calibrated


def test_small_rows_are_not_pruned_away():
    tall = problem(4, 40, 10)
    scaled = replace(tall, weight=tall.weight * torch.linspace(0.01, 1, 40, dtype=torch.float64)[:, None])
    ours, plain = ((solve(scaled, preset.expand()).values != 0).sum(1) for preset in (RIA(power=0.0), Magnitude()))
    assert int(plain[:10].sum()) < 15 < 25 < int(ours[:10].sum())


def test_grids_are_refused():
    with pytest.raises(InputError, match="take top_k, unstructured or n_m"):
        Treatment(RelativeImportance(), Int())
