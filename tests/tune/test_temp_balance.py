"""TempBalance: the published line from exponents to rates, and which of two matrices moves faster."""

from __future__ import annotations

import pytest
import torch

from tests.weights.problems import draw
from thrifty.base.errors import InputError
from thrifty.core.spectra import eigenvalues, hill
from thrifty.tune.distill import Distill
from thrifty.tune.temp_balance import TempBalance


def heavy(size: int) -> torch.Tensor:
    """A matrix whose singular values fall off as 1, 1/2, 1/3, .."""
    left, _, right = torch.linalg.svd(draw(4, size, size))
    return left @ torch.diag(torch.arange(1, size + 1, dtype=torch.float64) ** -1.0) @ right


def test_rates_follow_the_published_line():
    alphas = {"a": 2.0, "b": 3.5, "c": 2.4, "d": 6.0}
    expected = {name: 0.5 + (alpha - 2) / 4 * 1.0 for name, alpha in alphas.items()}
    assert TempBalance(least=0.5, most=1.5).factors(alphas) == pytest.approx(expected)
    assert TempBalance().factors({"a": 2.0, "b": 6.0}) == pytest.approx({"a": 0.6, "b": 1.4})
    assert TempBalance().factors({"a": 2.5, "b": 2.5}) == {"a": 1.0, "b": 1.0}
    assert TempBalance().factors({"a": 2.5, "b": float("nan"), "c": 3.5}) == pytest.approx({"a": 0.6, "b": 1.0, "c": 1.4})


def test_alphas_are_those_of_whole_matrices_and_of_all_places_of_a_kernel():
    matrix, kernel = draw(0, 20, 60), draw(1, 8, 5, 3, 3)
    assert TempBalance().alpha(matrix) == hill(eigenvalues(matrix))
    places = [torch.linalg.svdvals(kernel[:, :, row, column]).square() for row in range(3) for column in range(3)]
    assert TempBalance().alpha(kernel) == pytest.approx(hill(torch.cat(places)), rel=1e-9)


def test_a_heavier_tail_moves_less():
    rates = TempBalance()
    found = rates.factors({"light": rates.alpha(draw(4, 64, 64)), "heavy": rates.alpha(heavy(64))})
    assert found == pytest.approx({"light": 1.4, "heavy": 0.6})


def test_settings_are_checked():
    assert Distill(rates=TempBalance(every=7)).schedule.every == 7
    assert Distill().schedule.every == 0
    for wrong in ({"every": 0}, {"least": 0.0}, {"most": 0.9}, {"rule": "mean"}):
        with pytest.raises(InputError, match=f"temp_balance: {next(iter(wrong))}"):
            TempBalance(**wrong)
