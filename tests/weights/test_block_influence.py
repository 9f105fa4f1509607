"""Block influence: who changes little gives up more."""

from __future__ import annotations

import pytest

from thrifty.weights.allocate.block_influence import BlockInfluence
from thrifty.weights.layerwise import Look


def test_the_least_influential_block_gives_up_most():
    assert BlockInfluence().score(Look({}, {}, 0.25)) == 0.25
    found = BlockInfluence(0.2).share([0.5, 0.1, 0.3], [1, 1, 1], 0.5)
    assert found == pytest.approx([0.4, 0.6, 0.5])
    assert BlockInfluence().share([float("nan")] * 2, [1, 3], 0.5) == pytest.approx([0.5, 0.5])
