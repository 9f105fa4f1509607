"""The rotation of heads: the same for the queries that share a value head, flat where channels stood out.

Ashkboos et al. (2024), arXiv 2404.00456.
"""

from __future__ import annotations

import pytest
import torch

from tests.weights.problems import draw
from thrifty.base.anatomy import Space
from thrifty.base.records import Problem
from thrifty.core.hadamard import hadamard_matrix
from thrifty.core.statistics import Statistics
from thrifty.weights.base import solve
from thrifty.weights.preset.gptq import GPTQ
from thrifty.weights.preset.rtn import RTN
from thrifty.weights.transform.hadamard import Hadamard

SIZE = 16


def space_of(heads: int, repeat: int, size: int = SIZE) -> Space:
    width = heads * repeat * size
    return Space("o.in", width, "kv_group", repeat * size, ("v",), ("o",), "any", repeat)


@pytest.mark.parametrize(("heads", "repeat", "size"), [(2, 1, 16), (2, 3, 16), (3, 2, 12), (1, 2, 40)])
def test_every_head_is_multiplied_by_the_matrix_with_signs(heads, repeat, size):
    space = space_of(heads, repeat, size)
    found = Hadamard(seed=3).rewrite(space, [torch.ones(5, space.width)], Statistics.empty(space.width), None)
    inputs = draw(1, 30, space.width, dtype=torch.float32)
    signs = found.turn.signs.reshape(heads, repeat, size)
    assert torch.equal(signs, signs[:, :1].expand_as(signs)) and torch.equal(signs.abs(), torch.ones_like(signs))
    matrix = hadamard_matrix(size) / size**0.5
    expected = (inputs.reshape(30, heads, repeat, size) * signs) @ matrix
    torch.testing.assert_close(found.of(inputs), expected.reshape(30, -1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.scale, torch.ones(space.width)) and found.shift is None
    assert not torch.equal(found.turn.signs, Hadamard().rewrite(space, [torch.ones(5, space.width)], Statistics.empty(4), None).turn.signs)


def test_only_heads_that_any_map_passes_through_are_rotated():
    assert Hadamard().suits(space_of(2, 2))
    for commutes in ("none", "scale", "permutation"):
        assert not Hadamard().suits(Space("in", 32, "kv_group", 16, ("norm",), ("q",), commutes))
    assert not Hadamard().suits(Space("in", 32, "channel", 1, ("v",), ("o",), "any"))
    assert not Hadamard().suits(Space("in", 32, "head", 16, (), ("o",), "any"))


@pytest.mark.parametrize("preset", [RTN(3, 0), GPTQ(3, 0), RTN(4, 0)], ids=str)
def test_columns_that_stand_out_cost_less_once_they_are_spread(preset):
    """Two channels of each head carry large weights: one scale a row has to span them."""
    space = space_of(4, 1)
    weight = draw(2, 24, space.width, dtype=torch.float32)
    weight[:, ::8] *= 12
    statistics = Statistics.of(draw(3, 400, space.width, dtype=torch.float32))
    found = Hadamard().rewrite(space, [weight], statistics, None)
    treatment = preset.expand()
    plain = solve(Problem(weight, statistics.gram, 400), treatment).loss
    turned = solve(Problem(found.consumer(weight), found.under(statistics.gram), 400), treatment).loss
    assert turned < 0.6 * plain
