"""OBS against the published column-by-column algorithms written down plainly, and against exact least squares.

GPTQ: Frantar, Ashkboos, Hoefler and Alistarh (2022), arXiv 2210.17323. SparseGPT: Frantar and Alistarh (2023), arXiv 2301.00774.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw, loss, problem
from thrifty.base.errors import InputError
from thrifty.base.records import Encoded, Problem
from thrifty.core.grids import code_limits
from thrifty.weights.base import Target, hold
from thrifty.weights.solve import obs
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.both import Both
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured

GRIDS = (Int(4, 16), Int(3, 0), Int(2, 8, False), Int(4, 0, False, "mse"), Int(8, 32), Int(group_size=16, levels=6))

Choose = Callable[[torch.Tensor], torch.Tensor]
"""Scores of a run of inputs -> which entries stay."""


def inverse_factor(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper U with U^T U = (G + damping mean(diag G) I)^-1, the published form."""
    damped = gram + damping * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype)
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)


def nearest(target: Int, encoded: Encoded, column: torch.Tensor, index: int) -> torch.Tensor:
    """round(w / scale) + zero_point, clamped to the codes, and back; scale and zero point are those of the result."""
    group = index // target.group_size if target.group_size else 0
    smallest, largest = code_limits(target.level_count)
    scale = encoded.tensors["scale"][:, group].double()
    zero_point = torch.zeros_like(scale) if target.symmetric else encoded.tensors["zero_point"][:, group].double()
    codes = (torch.round(column / scale) + zero_point).clamp(smallest, largest)
    return (codes - zero_point) * scale


def gptq(task: Problem, target: Int, encoded: Encoded, damping: float, act_order: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, sum over rows of ((w - q) / U_jj)^2 of each input), one column after the other."""
    width = task.gram.shape[0]
    order = torch.argsort(task.gram.diagonal(), descending=True) if act_order else torch.arange(width)
    factor = inverse_factor(task.gram[order][:, order], damping)
    left, found = task.weight[:, order].clone(), torch.zeros_like(task.weight)
    costs = torch.zeros(width, dtype=torch.float64)
    for place in range(width):
        index = int(order[place])
        found[:, index] = nearest(target, encoded, left[:, place], index)
        error = (left[:, place] - found[:, index]) / factor[place, place]
        costs[index] = error.square().sum()
        left[:, place:] -= error[:, None] * factor[place, place:]
    return found, costs


def sparsegpt(
    task: Problem, damping: float, run: int, choose: Choose, grid: Int | None = None, encoded: Encoded | None = None
) -> torch.Tensor:
    """choose(scores [out, n]) -> kept, for each `run` of inputs when it is reached; then zeros (and rounding) column by column."""
    factor = inverse_factor(task.gram, damping)
    left, found = task.weight.clone(), torch.zeros_like(task.weight)
    for start in range(0, left.shape[1], run):
        columns = range(start, min(start + run, left.shape[1]))
        kept = choose(left[:, columns].square() / factor.diagonal()[columns].square())
        for index in columns:
            value = left[:, index] if grid is None else nearest(grid, encoded, left[:, index], index)
            found[:, index] = torch.where(kept[:, index - start], value, 0.0)
            error = (left[:, index] - found[:, index]) / factor[index, index]
            left[:, index:] -= error[:, None] * factor[index, index:]
    return found


def keep_share(sparsity: float) -> Choose:
    """All rows of a block together: the smallest scores go."""

    def choose(scores: torch.Tensor) -> torch.Tensor:
        dropped = scores.flatten().argsort()[: round(sparsity * scores.numel())]
        kept = torch.ones(scores.numel(), dtype=torch.bool)
        kept[dropped] = False
        return kept.reshape(scores.shape)

    return choose


def keep_n(n: int) -> Choose:
    """The n largest scores of each row."""

    def choose(scores: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(n, dim=1).indices, True)

    return choose


def back_solve(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The best values on a fixed mask: normal equations of each row, restricted to the kept inputs."""
    found = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        at = kept[row].nonzero()[:, 0]
        if at.numel():
            found[row, at] = torch.linalg.solve(gram[at][:, at], gram[at] @ weight[row])
    return found


# -- grids: GPTQ ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_on_a_grid_it_is_gptq(target, act_order, damping):
    task = problem(3, out=24, width=64)
    found = OBS(act_order, damping, block_size=32).solve(task, target)
    expected, costs = gptq(task, target, found.encoded, damping, act_order)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.column_loss, costs, rtol=1e-6, atol=1e-9)
    assert found.loss == pytest.approx(loss(task.weight, expected, task.gram), rel=1e-8)
    assert torch.equal(found.encoded.decode().double(), found.values)
    assert found.warnings == ()


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 6), st.booleans(), st.booleans())
def test_on_any_grid_and_shape_it_is_gptq(seed, width, out, act_order, symmetric):
    task = problem(seed, out, width)
    target = Int(3, 0, symmetric)
    found = OBS(act_order).solve(task, target)
    expected, costs = gptq(task, target, found.encoded, 0.01, act_order)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.column_loss, costs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", GRIDS, ids=str)
def test_without_correlation_it_is_plain_rounding(target):
    for gram in (torch.eye(64, dtype=torch.float64), torch.diag(draw(9, 64).exp())):
        task = replace(problem(4, width=64), gram=gram)
        for solver in (OBS(), OBS(act_order=True)):
            found = solver.solve(task, target)
            columns = [nearest(target, found.encoded, task.weight[:, index], index) for index in range(64)]
            plain = torch.stack(columns, dim=1)
            torch.testing.assert_close(found.values, plain, rtol=0, atol=1e-12)
            assert found.loss == pytest.approx(loss(task.weight, plain, gram), rel=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [False, True])
def test_grids_are_those_of_the_original_weights(act_order, symmetric):
    task = problem(19, width=64)
    whole = Int(3, 16, symmetric).fit(task.weight).step
    found = OBS(act_order).solve(task, Int(3, 16, symmetric)).encoded.tensors
    assert torch.equal(found["scale"].double(), whole.scale)
    assert symmetric or torch.equal(found["zero_point"].double(), whole.zero_point)
    searched = OBS(act_order).solve(task, Int(3, 16, symmetric, "mse")).encoded.tensors["scale"].double().abs()
    assert bool((searched <= whole.scale).all()) and bool((searched < whole.scale).any()) and bool((searched > 0.3 * whole.scale).all())


@pytest.mark.parametrize("act_order", [False, True])
def test_the_loss_is_lower_than_that_of_rounding(act_order):
    solved, rounded = [], []
    target = Int(4, 32)
    for seed in range(8):
        task = problem(seed * 100, out=32, width=128, unequal=0.5)
        solved.append(OBS(act_order).solve(task, target).loss)
        rounded.append(Round().solve(task, target).loss)
    assert sum(solved) < 0.8 * sum(rounded)
    assert all(less < more for less, more in zip(solved, rounded, strict=True))


def test_taking_the_largest_inputs_first_pays_on_average():
    losses = [[OBS(order).solve(problem(seed * 31, width=64), Int(3, 16)).loss for order in (False, True)] for seed in range(8)]
    assert sum(ordered for _, ordered in losses) < 0.9 * sum(plain for plain, _ in losses)


# -- masks: SparseGPT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.01, 0.2])
@pytest.mark.parametrize(
    ("target", "run", "choose"),
    [
        (Unstructured(0.5, 16), 16, keep_share(0.5)),
        (Unstructured(0.7, 24), 24, keep_share(0.7)),
        (Unstructured(0.4, 128), 64, keep_share(0.4)),
        (NM(2, 4), 4, keep_n(2)),
        (NM(1, 8), 8, keep_n(1)),
        (TopK(0.5, 32), 32, keep_n(16)),
    ],
    ids=lambda part: str(part) if isinstance(part, Target) else "",
)
def test_on_a_mask_it_is_sparsegpt(target, run, choose, damping):
    task = problem(5, out=20, width=64)
    found = OBS(damping=damping).solve(task, target)
    expected = sparsegpt(task, damping, run, choose)
    assert torch.equal(found.values == 0, expected == 0)
    torch.testing.assert_close(found.values, expected, rtol=1e-7, atol=1e-7)
    assert found.loss == pytest.approx(loss(task.weight, expected, task.gram), rel=1e-8)


@pytest.mark.parametrize(
    ("mask", "run", "choose"), [(NM(2, 4), 4, keep_n(2)), (Unstructured(0.5, 16), 16, keep_share(0.5)), (TopK(0.75, 32), 32, keep_n(8))]
)
@pytest.mark.parametrize("grid", [Int(4, 16), Int(3, 0, False, "mse")], ids=str)
def test_on_a_mask_and_a_grid_it_is_sparsegpt_with_rounding(mask, run, choose, grid):
    task = problem(6, out=12, width=64)
    found = OBS().solve(task, Both(mask, grid))
    expected = sparsegpt(task, 0.01, run, choose, grid, found.encoded)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-7)
    assert torch.equal(found.encoded.decode().double(), found.values)


@pytest.mark.parametrize("target", [Unstructured(0.5, 16), NM(), TopK(0.6, 16)], ids=str)
def test_no_correlation_no_update_of_what_stays(target):
    task = replace(problem(7), gram=torch.eye(32, dtype=torch.float64))
    found = OBS().solve(task, target).values
    torch.testing.assert_close(found[found != 0], task.weight[found != 0], rtol=1e-12, atol=1e-12)


def test_nothing_to_prune_changes_nothing():
    task = problem(8)
    for target in (Unstructured(0.0, 16), NM(4, 4), TopK(0.0)):
        assert torch.equal(OBS().solve(task, target).values, task.weight)


def test_one_mask_over_all_inputs_is_chosen_at_once():
    """mask_block 0 lets all inputs compete, as one block as wide as the matrix does."""
    task = problem(9, out=20, width=96, unequal=1.5)
    whole, block = (OBS().solve(task, Unstructured(0.5, size)).values for size in (0, 96))
    counts = (block == 0).double().mean(0)
    assert float(counts[:32].mean() - counts[32:64].mean()) != pytest.approx(0, abs=0.02)
    torch.testing.assert_close(whole, block, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(["unstructured", "n_m", "top_k"]))
def test_exact_least_squares_on_its_mask_is_a_lower_bound(seed, name):
    task = problem(seed, out=6, width=24)
    target = {"unstructured": Unstructured(0.5, 8), "n_m": NM(), "top_k": TopK(0.5, 8)}[name]
    found = OBS().solve(task, target)
    best = back_solve(task.weight, task.gram, found.values != 0)
    row_best = torch.stack([(w - v) @ task.gram @ (w - v) for w, v in zip(task.weight, best, strict=True)])
    assert bool((row_best <= found.row_loss * (1 + 1e-9) + 1e-12).all())
    pruned_only = task.weight * (found.values != 0)
    assert found.loss < loss(task.weight, pruned_only, task.gram)


def test_no_mask_beats_the_best_of_all_masks():
    """One row of ten inputs, five kept: all 252 masks, each with exact least squares."""
    ratios = []
    for seed in range(6):
        task = problem(seed * 17, out=1, width=10)
        best = float("inf")
        for kept in combinations(range(10), 5):
            mask = torch.zeros(1, 10, dtype=torch.bool)
            mask[0, list(kept)] = True
            best = min(best, loss(task.weight, back_solve(task.weight, task.gram, mask), task.gram))
        swept = OBS().solve(task, TopK(0.5, 10)).loss
        ratios.append(swept / best)
        assert swept < Round().solve(task, TopK(0.5, 10)).loss
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / 6 < 4


def test_the_loss_is_lower_than_that_of_wandas_mask():
    for seed in range(6):
        task = problem(seed * 7, out=24, width=64)
        for target in (Unstructured(0.5, 64), NM(), TopK(0.5, 64)):
            assert OBS().solve(task, target).loss < 0.9 * Round(weighted=True).solve(task, target).loss


# -- what must not matter ------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10_000), st.integers(1, 90), st.integers(1, 200), st.integers(1, 200), st.sampled_from(["int", "top_k", "n_m", "both"])
)
@settings(max_examples=60)
def test_the_block_size_does_not_matter(seed, width, first, second, name):
    width = -(-width // 4) * 4
    task = problem(seed, out=3, width=width)
    target = {"int": Int(4, 4), "top_k": TopK(0.5, 12), "n_m": NM(), "both": Both(NM(), Int(4, 4))}[name]
    one, other = (OBS(block_size=size).solve(task, target) for size in (first, second))
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.row_loss, other.row_loss, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("panel", [1, 5, 64, 1000])
def test_the_panel_does_not_matter(panel, monkeypatch):
    task = problem(10, width=96)
    expected = OBS(act_order=True).solve(task, Int(3, 16))
    monkeypatch.setattr(obs, "PANEL", panel)
    found = OBS(act_order=True).solve(task, Int(3, 16))
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.column_loss, expected.column_loss, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
def test_rows_do_not_influence_each_other(act_order):
    task = problem(11, out=9)
    together = OBS(act_order).solve(task, Int(3, 8))
    for row in range(9):
        alone = OBS(act_order).solve(replace(task, weight=task.weight[row : row + 1]), Int(3, 8))
        torch.testing.assert_close(alone.values[0], together.values[row], rtol=0, atol=1e-9)
        assert alone.loss == pytest.approx(float(together.row_loss[row]), rel=1e-8)


def test_the_scale_of_the_gram_matrix_does_not_matter():
    task = problem(12)
    larger = OBS(True).solve(replace(task, gram=task.gram * 1000), Int(3, 8))
    plain = OBS(True).solve(task, Int(3, 8))
    torch.testing.assert_close(larger.values, plain.values, rtol=0, atol=1e-9)
    assert larger.loss == pytest.approx(1000 * plain.loss, rel=1e-8)


# -- the loss, and matrices that cannot be factorized ----------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from(["grid", "ordered", "mask", "both"]), st.sampled_from([1e-4, 0.01, 1.0]))
def test_the_reported_loss_is_the_loss(seed, name, damping):
    task = problem(seed, out=4, width=20)
    target = {"grid": Int(3, 4), "ordered": Int(3, 0, False), "mask": NM(), "both": Both(NM(), Int(4, 4))}[name]
    found = OBS(name == "ordered", damping).solve(task, target)
    error = task.weight - found.values
    torch.testing.assert_close(found.row_loss, ((error @ task.gram) * error).sum(1), rtol=1e-7, atol=1e-9)
    damped = task.gram + damping * task.gram.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    assert float(found.column_loss.sum()) == pytest.approx(loss(task.weight, found.values, damped), rel=1e-8)


def test_the_reported_loss_is_near_the_loss_in_float32():
    task = problem(13, out=64, width=256, dtype=torch.float32)
    for target in (Int(4, 32), NM()):
        found = OBS().solve(task, target)
        assert found.loss == pytest.approx(loss(task.weight, found.values, task.gram), rel=1e-3)


@pytest.mark.parametrize("target", [Int(3, 8), NM(), Unstructured(0.5, 16)], ids=str)
def test_few_tokens_and_silent_inputs_are_no_trouble(target):
    gram = correlated_gram(14, 32, tokens=5)
    gram[7] = gram[:, 7] = 0
    for matrix in (gram, torch.zeros(32, 32, dtype=torch.float64)):
        task = replace(problem(15), gram=matrix)
        found = OBS().solve(task, target)
        assert bool(found.values.isfinite().all()) and found.warnings == ()
        assert found.loss == pytest.approx(loss(task.weight, found.values, matrix), rel=1e-7, abs=1e-9)


def test_a_matrix_without_a_factor_gives_plain_rounding_and_says_so():
    gram = torch.diag(torch.tensor([1.0, 1.0, 1.0, -3.5], dtype=torch.float64).repeat(8))
    gram[0, 0] = 30.0
    task = replace(problem(16), gram=gram)
    found = OBS().solve(task, Int(4, 8))
    assert torch.equal(found.values, Int(4, 8).fit(task.weight).project(task.weight))
    assert len(found.warnings) == 1 and "layer" in found.warnings[0]


def test_damping_rises_until_there_is_a_factor_and_that_is_said():
    gram = correlated_gram(20, 32, tokens=6).float()
    task = Problem(draw(21, 12, 32, dtype=torch.float32), gram, 6, "layer")
    found = OBS(damping=1e-12).solve(task, Int(4, 8))
    assert len(found.warnings) == 1 and found.warnings[0].startswith("layer: the Gram matrix could be factorized only with damping 1e-")
    raised = float(found.warnings[0].rpartition(" ")[2])
    assert torch.equal(found.values, OBS(damping=raised).solve(task, Int(4, 8)).values)
    assert found.loss < 0.3 * Round().solve(task, Int(4, 8)).loss


@pytest.mark.parametrize("target", [Unstructured(0.5, 16), NM(), TopK(0.5, 16)], ids=str)
def test_weights_of_inputs_that_were_never_seen_go_first(target):
    """As in the published code, which sets them to zero before it starts: half of the inputs dead, half of the weights cost nothing."""
    gram = correlated_gram(22, 32)
    gram[1::2] = gram[:, 1::2] = 0
    task = replace(problem(23), gram=gram)
    found = OBS().solve(task, target)
    assert found.loss == pytest.approx(0, abs=1e-12)
    assert bool((found.values[:, 1::2] == 0).all()) and torch.equal(found.values[:, ::2], task.weight[:, ::2])


@pytest.mark.parametrize("block", [1, 5, 7])
@pytest.mark.parametrize("rows", [1, 3])
def test_small_blocks_add_up_to_the_share_of_the_matrix(rows, block):
    task = problem(24, out=rows, width=100)
    found = OBS().solve(task, Unstructured(0.3, block))
    assert int((found.values == 0).sum()) == round(0.3 * rows * 100)


def test_what_is_held_at_zero_stays_there_and_the_rest_makes_up_for_it():
    task = problem(17, out=8)
    mask = draw(18, 8, 32) > 0
    for target in (Int(4, 8), TopK(0.6, 16), Both(NM(), Int(4, 8))):
        found = OBS().solve(task, hold(target, mask))
        assert bool((found.values[~mask] == 0).all())
        assert torch.equal(found.encoded.decode().double() * mask, found.encoded.decode().double())
        assert found.loss == pytest.approx(loss(task.weight, found.values, task.gram), rel=1e-8)
    swept = OBS().solve(task, hold(Int(8, 8), mask))
    assert swept.loss < 0.8 * Round().solve(task, hold(Int(8, 8), mask)).loss
    assert swept.loss >= loss(task.weight, back_solve(task.weight, task.gram, mask), task.gram)


def test_an_order_of_its_own_is_refused_for_masks_of_neighbours():
    for target in (NM(), TopK(), Unstructured(), Both(NM(), Int())):
        with pytest.raises(InputError, match="act_order"):
            OBS(act_order=True).accepts(target)
    OBS(act_order=True).accepts(Int())
