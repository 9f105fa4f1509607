"""The compiled loops against their twins in plain torch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw, problem
from thrifty.base.events import listening
from thrifty.base.records import Problem, Solution
from thrifty.core import fast_grids
from thrifty.core.grids import fit_step, grouped, round_to
from thrifty.weights.base import Target, hold
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.both import Both
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.ternary import Ternary
from thrifty.weights.target.top_k import TopK

pytestmark = pytest.mark.skipif(fast_grids._calls() is None, reason="this machine cannot compile it")

TARGETS: list[Target] = [
    Int(4, 16),
    Int(3, 32, symmetric=False, range="mse"),
    Int(8, 0, symmetric=False),
    Ternary(32),
    TopK(0.5),
    NM(2, 4),
    Both(grid=Int(4, 16), mask=NM(2, 4)),
    hold(Int(4, 32), draw(7, 37, 96) > -0.5),
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
@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_are_fixed_as_plain_torch_fixes_them(target, act_order, monkeypatch):
    """Float32 products in another order may decide a tie in another way, never a whole row."""
    task = problem(3, out=37, width=96, dtype=torch.float32)
    found, expected = both_ways(task, target, OBS(act_order and not target.run), monkeypatch)
    assert float((~torch.isclose(found.values, expected.values, rtol=1e-3, atol=1e-4)).float().mean()) < 0.01
    torch.testing.assert_close(found.row_loss, expected.row_loss, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss, rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(found.column_loss, expected.column_loss, rtol=0.05, atol=1e-3)
    assert torch.equal(found.encoded.decode(), found.values)


@pytest.mark.parametrize("out", [1, 15, 16, 17, 127, 128, 129, 300])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_is_the_same_among_any_others(out, symmetric):
    task, target = problem(5, out=out, width=64, dtype=torch.float32), Int(4, 16, symmetric)
    gram = torch.diag(task.gram.diagonal())  # products with others must not differ in their last bits
    whole = OBS().solve(replace(task, gram=gram), target)
    for row in {0, out // 2, out - 1}:
        alone = OBS().solve(replace(task, weight=task.weight[row : row + 1].contiguous(), gram=gram), target)
        assert torch.equal(alone.values[0], whole.values[row])
        torch.testing.assert_close(alone.row_loss[0], whole.row_loss[row])


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
    wrong = SimpleNamespace(thrifty_panel=Nothing(), thrifty_least_error=Nothing())
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
