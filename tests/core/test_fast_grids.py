"""The compiled loops against their twins in plain torch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw, loss, problem
from tests.weights.test_obs import gptq
from thrifty.base.events import listening
from thrifty.base.records import Problem, Solution
from thrifty.core import fast_grids
from thrifty.core.grids import Step, fit_step, grouped, round_to
from thrifty.weights.base import Target, hold
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.both import Both
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.ternary import Ternary
from thrifty.weights.target.top_k import TopK

pytestmark = pytest.mark.skipif(fast_grids._calls() is None, reason="this machine cannot compile it")

HELD = Int(4, 32)
"""The target that some entries are held at zero of."""

TARGETS: list[Target] = [
    Int(4, 16),
    Int(3, 32, symmetric=False, range="mse"),
    Int(8, 0, symmetric=False),
    Ternary(32),
    TopK(0.5),
    NM(2, 4),
    Both(grid=Int(4, 16), mask=NM(2, 4)),
    HELD,
]


def both_ways(task: Problem, target: Target, solver: OBS, monkeypatch: pytest.MonkeyPatch) -> tuple[Solution, Solution]:
    """What compiled code finds, and what its twin does."""
    taken: list[bool] = []

    def watched(*arguments: object) -> object:
        taken.append((found := fast(*arguments)) is not None)
        return found

    fast = fast_grids.fixed_panel
    with monkeypatch.context() as patch:
        patch.setattr("thrifty.weights.solve.obs.fixed_panel", watched)
        found = solver.solve(task, target)
        assert taken and all(taken), "plain torch computed what the library takes"
        patch.setattr(fast_grids, "_calls", lambda: None)
        return found, solver.solve(task, target)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("out", "act_order"), [(37, False), (37, True), (300, False)])
def test_inputs_are_fixed_as_plain_torch_fixes_them(target, out, act_order, monkeypatch):
    """Float32 products in another order may decide a tie in another way, never a whole row."""
    target = hold(target, draw(7, out, 96) > -0.5) if target == HELD else target
    task = problem(3, out=out, width=96, dtype=torch.float32)
    found, expected = both_ways(task, target, OBS(act_order and not target.run), monkeypatch)
    assert float((~torch.isclose(found.values, expected.values, rtol=1e-3, atol=1e-4)).float().mean()) < 0.01
    torch.testing.assert_close(found.row_loss, expected.row_loss, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss, rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(found.column_loss, expected.column_loss, rtol=0.05, atol=1e-3)
    assert torch.equal(found.encoded.decode(), found.values)


@pytest.mark.parametrize("out", [1, 15, 16, 17, 127, 128, 129, 300])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_is_the_same_among_any_others(out, symmetric):
    factor = torch.linalg.cholesky(problem(5, width=32).gram, upper=True).float().contiguous()
    weight, carried = draw(5, 32, out).float(), draw(6, 32, out).float()

    def fixed(first: int, last: int) -> tuple[torch.Tensor, ...]:
        """What becomes of some columns: errors, values, losses."""
        error, values, row_loss = weight[:, first:last].clone(), torch.zeros(32, last - first), torch.zeros(last - first)
        cells = Int(4, 16, symmetric).fit(weight[:, first:last].T).cells()
        behind = carried[:, first:last].contiguous()
        assert fast_grids.fixed_panel(error, behind, values, factor, cells, torch.arange(32), row_loss) is not None
        return error, values, row_loss

    whole = fixed(0, out)
    for first, last in {(0, 1), (out // 2, out), (out - 1, out), (0, min(out, 130))}:
        for part, found in zip(fixed(first, last), whole, strict=True):
            assert torch.equal(part, found[..., first:last])


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 16, 20, 32, 64]), st.booleans(), st.booleans(), st.sampled_from([3, 4, 16, 256]))
def test_the_least_error_is_found_as_plain_torch_finds_it(seed, size, symmetric, weighed, levels):
    values, importance = draw(seed, 9, 3 * size).float(), draw(seed + 1, 3, size).float().square() if weighed else None
    values[0] = 0.0
    groups = grouped(values, size)
    found = fit_step(groups, levels, symmetric, "mse", importance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_grids, "_calls", lambda: None)
        expected = fit_step(groups, levels, symmetric, "mse", importance)
    counts = torch.ones(3, size) if importance is None else importance
    error, least = (((groups - round_to(groups, step, levels)).square() * counts).sum(-1) for step in (found, expected))
    assert float((error / least.clamp_min(1e-12)).max()) < 1 + 1e-4
    assert float((found.scale == expected.scale).float().mean()) > 0.9


@pytest.mark.parametrize("size", [16, 20, 32])
@pytest.mark.parametrize("weighed", [True, False])
def test_of_two_signs_that_are_as_good_the_positive_one_is_taken(size, weighed):
    """Where no value is clipped both miss the same; which one is taken must not hang on how their sums were rounded."""
    groups, importance = grouped(draw(8, 400, 4 * size).float(), size), draw(9, 4, size).float().square() if weighed else None
    step = fit_step(groups, 16, True, "mse", importance)
    counts = torch.ones(4, size) if importance is None else importance
    error, turned = (
        ((groups.double() - round_to(groups, Step(sign * step.scale, None), 16)).square() * counts).sum(-1) for sign in (1, -1)
    )
    equal = torch.isclose(error, turned, rtol=1e-9)
    assert 20 < int(equal.sum()) < equal.numel() and bool((step.scale[equal] > 0).all())


@pytest.mark.parametrize("target", [Int(4, 16), Int(3, 16, symmetric=False), Int(2, 0, symmetric=False)], ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_it_is_gptq(target, act_order):
    """The algorithm as it was published, in float64, decides nearly every code alike."""
    task = problem(9, out=40, width=64)
    single = replace(task, weight=task.weight.float(), gram=task.gram.float())
    found = OBS(act_order).solve(single, target)
    expected, _ = gptq(replace(task, weight=single.weight.double()), target, found.encoded, OBS.damping, act_order)
    assert float((found.values - expected).abs().gt(1e-3).double().mean()) < 0.01
    assert loss(single.weight, found.values, task.gram) == pytest.approx(loss(single.weight, expected, task.gram), rel=0.01)


def test_a_gram_matrix_may_lie_by_columns():
    task = problem(3, out=20, width=64, dtype=torch.float32)
    expected, found = OBS().solve(task, Int(4, 16)), OBS().solve(replace(task, gram=task.gram.T), Int(4, 16))
    assert torch.equal(found.values, expected.values) and torch.equal(found.row_loss, expected.row_loss)
    rows, cells = torch.ones(4, 8), Int(4, 4).fit(torch.ones(8, 4)).cells()
    flipped = torch.eye(4).T
    assert fast_grids.fixed_panel(rows, rows.clone(), rows.clone(), flipped, cells, torch.arange(4), torch.zeros(8)) is None


def test_other_numbers_are_left_to_torch():
    task = problem(4, out=8, width=32)  # float64
    cells = Int(4, 16).fit(task.weight).cells()
    arguments = [torch.zeros(4, 8, dtype=torch.float64) for _ in range(3)]
    found = fast_grids.fixed_panel(
        *arguments, torch.eye(4, dtype=torch.float64), cells, torch.arange(4), torch.zeros(8, dtype=torch.float64)
    )
    assert found is None
    many = torch.zeros(fast_grids.MOST + 1, 8)
    cells = Int(4, 0).fit(torch.ones(8, len(many))).cells()
    whole = torch.eye(len(many))
    assert fast_grids.fixed_panel(many, many.clone(), many.clone(), whole, cells, torch.arange(len(many)), torch.zeros(8)) is None


def test_a_library_that_is_wrong_is_not_used(monkeypatch):
    said = []
    wrong = SimpleNamespace(thrifty_panel=Nothing(), thrifty_best_scale=Nothing())
    monkeypatch.setattr(fast_grids, "library", lambda _: wrong)
    with listening(said.append):
        assert fast_grids._calls.__wrapped__() is None
    assert "is wrong on this machine" in said[0].message
    monkeypatch.setattr(fast_grids, "library", lambda _: None)
    assert fast_grids._calls.__wrapped__() is None


class Nothing:
    """A function of a library that does nothing."""

    def __call__(self, *_: object) -> int:
        return 0
