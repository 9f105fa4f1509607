"""FARMS and AlphaPruning: the published map from exponents to shares, and which of them shapes lead astray."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.core.spectra import eigenvalues, farms, hill
from thrifty.weights.allocate.alpha_pruning import AlphaPruning
from thrifty.weights.allocate.farms import Farms
from thrifty.weights.layerwise import HIGHEST, Look


def published(alphas: list[float], sizes: list[int], sparsity: float, epsilon: float) -> list[float]:
    """r_l and s_l as the paper writes them, before clipping."""
    low, high = min(alphas), max(alphas)
    ratios = [(alpha - low) / (high - low) * 2 * epsilon + 1 - epsilon for alpha in alphas]
    scale = sparsity * sum(sizes) / sum(ratio * size for ratio, size in zip(ratios, sizes, strict=True))
    return [ratio * scale for ratio in ratios]


@pytest.mark.parametrize("kind", [Farms, AlphaPruning])
def test_shares_follow_the_published_map(kind):
    alphas, sizes = [2.0, 3.5, 2.4, 6.0], [10, 20, 20, 5]
    found = kind(0.2).share(alphas, sizes, 0.6)
    assert found == pytest.approx(published(alphas, sizes, 0.6, 0.2))
    assert kind(0.0).share(alphas, sizes, 0.6) == pytest.approx([0.6] * 4)
    assert kind(0.3).share([2.0, 2.0], [1, 7], 0.6) == pytest.approx([0.6] * 2)


@given(st.lists(st.tuples(st.floats(1, 20), st.integers(1, 1000)), min_size=1, max_size=9), st.floats(0, 0.99), st.floats(0, 0.9))
def test_the_mean_over_all_weights_is_the_sparsity(parts, sparsity, epsilon):
    alphas, sizes = zip(*parts, strict=True)
    found = Farms(epsilon).share(alphas, sizes, sparsity)
    assert sum(share * size for share, size in zip(found, sizes, strict=True)) == pytest.approx(
        sparsity * sum(sizes), abs=1e-6 * sum(sizes)
    )
    assert all(0 <= share <= HIGHEST for share in found)


def test_scores_are_means_over_matrices():
    weights = {"a": draw(0, 20, 20), "b": draw(1, 20, 60)}
    settings = {"rule": "median", "side": 10, "positions": 3}
    expected = sum(farms(weight, 10, 1.0, 3, "median") for weight in weights.values()) / 2
    assert Farms(**settings).score(Look(weights)) == pytest.approx(expected)
    expected = sum(hill(eigenvalues(weight), "median") for weight in weights.values()) / 2
    assert AlphaPruning(rule="median").score(Look(weights)) == pytest.approx(expected)


def test_a_long_random_matrix_is_pruned_more_only_where_whole_matrices_are_looked_at():
    """Both are noise: neither is better trained than the other."""
    square, long = Look({"": draw(2, 64, 64)}), Look({"": draw(3, 64, 512)})
    plain, even = AlphaPruning(rule="median"), Farms(rule="median", side=64, positions=8)
    apart = [kind.score(long) / kind.score(square) for kind in (plain, even)]
    assert apart[0] > 1.4 and abs(apart[1] - 1) < 0.05


def test_a_heavier_tail_keeps_more():
    light = draw(4, 64, 64)
    left, _, right = torch.linalg.svd(light)
    heavy = left @ torch.diag(torch.arange(1, 65, dtype=torch.float64) ** -1.0) @ right
    for kind in (Farms(rule="median"), AlphaPruning(rule="median")):
        scores = [kind.score(Look({"": weight})) for weight in (light, heavy)]
        first, second = kind.share(scores, [1, 1], 0.5)
        assert first > 0.6 and second < 0.4
