"""Rounding in two steps: the composition of both, and no other matrix than that."""

from __future__ import annotations

import pytest
import torch

from tests.weights.problems import problem
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.core.linalg import row_forms
from thrifty.weights.solve.aqlm import AQLM
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.progressive import Progressive
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.zero_free import ZeroFree


@pytest.mark.parametrize("by", [OBS(), Round()], ids=["obs", "round"])
def test_it_is_one_step_after_the_other(by) -> None:
    given, target = problem(0, 24, 64), ZeroFree(2, 32)
    fine = by.solve(given, Int(4)).values
    expected = by.solve(Problem(fine, given.gram, given.tokens), target)
    found = Progressive(by).solve(given, target)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.encoded.decode(), found.values)
    torch.testing.assert_close(found.row_loss, row_forms(given.weight - found.values, given.gram))
    assert Progressive(by).calibrated == by.calibrated


def test_a_very_fine_grid_hardly_matters() -> None:
    given, target = problem(1, 64, 128), ZeroFree(2, 32)
    direct = Round().solve(given, target).encoded.tensors["codes"]
    moved = {bits: Progressive(Round(), Int(bits)).solve(given, target).encoded.tensors["codes"] != direct for bits in (8, 3)}
    assert float(moved[8].float().mean()) < 0.02 < float(moved[3].float().mean())


def test_both_grids_must_be_within_reach() -> None:
    with pytest.raises(InputError):
        Progressive(AQLM()).accepts(ZeroFree())
    with pytest.raises(InputError, match="does not divide"):
        Progressive(OBS(), Int(4, 48)).solve(problem(0, 8, 64), ZeroFree(2, 32))
