"""OWL: the published share of outliers by loops, and shares around the target."""

from __future__ import annotations

import math

import pytest
import torch

from tests.weights.problems import draw
from thrifty.weights.allocate.owl import OWL
from thrifty.weights.layerwise import Look


def test_the_score_is_the_share_of_entries_far_above_the_mean_of_the_block():
    inputs = {"a": draw(0, 30, 6).exp(), "b": draw(1, 30, 9)}
    weights = {"a": draw(2, 8, 6), "b": draw(3, 5, 9)}
    entries = [
        abs(float(weights[path][row, column])) * float(inputs[path][:, column].norm())
        for path in weights
        for row in range(weights[path].shape[0])
        for column in range(weights[path].shape[1])
    ]
    energies = {path: found.square().mean(0) for path, found in inputs.items()}
    for outlier in (1.5, 3.0, 5.0):
        expected = sum(entry > outlier * sum(entries) / len(entries) for entry in entries) / len(entries)
        assert OWL(outlier=outlier).score(Look(weights, energies)) == pytest.approx(expected)
    assert math.isnan(OWL().score(Look(weights)))
    alone = OWL(outlier=2.0).score(Look({"a": weights["a"]}, energies))
    assert OWL(outlier=2.0).score(Look(weights, {"a": energies["a"]})) == alone, "what no row reached does not count"


def test_shares_are_the_published_ones():
    scores, lam = [0.01, 0.04, 0.02], 0.08
    kept = [2 * lam * (score - 0.01) / 0.03 for score in scores]
    expected = [1 - (keep - sum(kept) / 3 + 0.3) for keep in kept]
    assert OWL().share(scores, [7, 7, 7], 0.7) == pytest.approx(expected)
    found = OWL().share(scores, [1, 5, 2], 0.7)
    assert sum(share * size for share, size in zip(found, [1, 5, 2], strict=True)) == pytest.approx(0.7 * 8)
    assert max(found) - min(found) == pytest.approx(2 * lam) and found[1] < found[2] < found[0]
    assert OWL(lam=0.0).share(scores, [1, 5, 2], 0.7) == pytest.approx([0.7] * 3)
    assert OWL(lam=0.4).share([0.0, 1.0], [1, 1], 0.1) == pytest.approx([0.2, 0.0]), "no share is negative"


def test_scores_do_not_depend_on_how_large_weights_are():
    weights, energies = {"a": draw(4, 20, 10)}, {"a": torch.ones(10, dtype=torch.float64)}
    larger = {"a": 100 * weights["a"]}
    assert OWL(outlier=1.5).score(Look(weights, energies)) == OWL(outlier=1.5).score(Look(larger, energies)) > 0
