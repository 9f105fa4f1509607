"""CoQMoE's rewrite: its formula, what it leaves alone, and that one grid then costs a layer's outputs no more than one a channel.

Dong et al. (2025), arXiv 2506.08496.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.weights.problems import draw
from thrifty.base.anatomy import Space
from thrifty.core.activations import Rounding
from thrifty.core.layer_grid import centred_grid, channel_grids, layer_grid
from thrifty.core.statistics import Statistics
from thrifty.weights.activation.static import Static
from thrifty.weights.base import Treatment
from thrifty.weights.preset.rtn import RTN
from thrifty.weights.transform.coqmoe import CoQMoE

WIDTH = 32
SPACE = Space("fc.in", WIDTH, producers=("norm",), consumers=("fc",), commutes_with="scale", normed=True, holds_shift=True)
W4 = RTN(8, 0, activation=Static(bits=4)).expand()


def inputs_of(seed: int, tokens: int = 300) -> torch.Tensor:
    """What a normalization with unequal gains and biases puts out."""
    normed = torch.nn.functional.layer_norm(draw(seed, tokens, WIDTH, dtype=torch.float32), (WIDTH,))
    return normed * draw(seed + 1, WIDTH, dtype=torch.float32).exp() + 2 * draw(seed + 2, WIDTH, dtype=torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_scale_and_shift_are_those_of_the_channels_grids(bits: int) -> None:
    inputs = inputs_of(1)
    treatment = RTN(8, 0, activation=Static(bits=bits)).expand()
    found = CoQMoE().rewrite(SPACE, [], Statistics.of(inputs), treatment)
    ratio, shift = layer_grid(*torch.aminmax(inputs, dim=0), bits)
    assert torch.equal(found.scale, ratio) and torch.equal(found.shift, shift)
    half = CoQMoE(0.5).rewrite(SPACE, [], Statistics.of(inputs), treatment)
    torch.testing.assert_close(half.scale.square(), ratio)
    assert torch.equal(half.shift, shift)


def test_without_a_place_for_a_shift_only_the_scale_is_taken_out() -> None:
    inputs = inputs_of(2)
    found = CoQMoE().rewrite(replace(SPACE, holds_shift=False), [], Statistics.of(inputs), W4)
    assert found.shift is None
    assert torch.equal(found.scale, centred_grid(*torch.aminmax(inputs, dim=0)))


@pytest.mark.parametrize("treatment", [RTN(8, 0).expand(), None], ids=["inputs are not rounded", "nothing is solved"])
def test_what_it_leaves_alone(treatment: Treatment | None) -> None:
    assert CoQMoE().rewrite(SPACE, [], Statistics.of(inputs_of(3)), treatment) is None
    assert CoQMoE().rewrite(SPACE, [], Statistics.empty(WIDTH), W4) is None
    assert CoQMoE().suits(SPACE) and not CoQMoE().suits(replace(SPACE, normed=False))


@pytest.mark.parametrize("seed", range(5))
def test_a_layer_with_one_grid_computes_what_it_computes_with_one_a_channel(seed: int) -> None:
    """Outputs of a consumer of rounded inputs: after the rewrite on one symmetric grid, and before it on asymmetric grids by channel."""
    inputs, weight, bias = inputs_of(10 * seed), draw(10 * seed + 5, 20, WIDTH, dtype=torch.float32), draw(4, 20, dtype=torch.float32)
    found = CoQMoE().rewrite(SPACE, [weight], Statistics.of(inputs), W4)
    scale, zero_point = channel_grids(*torch.aminmax(inputs, dim=0), 4)
    rewritten, folded, moved = found.of(inputs), found.consumer(weight), bias + found.correction(weight)
    before = inputs @ weight.T + bias
    torch.testing.assert_close(rewritten @ folded.T + moved, before, rtol=1e-4, atol=1e-4)

    one = Rounding(4, "tensor", True, scale.mean()[None], torch.zeros(1))
    each = ((inputs / scale).round() + zero_point).clamp(-8, 7).sub(zero_point) * scale
    after, alone = one(rewritten) @ folded.T + moved, each @ weight.T + bias
    plain = Rounding(4, "tensor", False)(inputs) @ weight.T + bias
    same = float((after - before).square().sum())
    assert same == pytest.approx(float((alone - before).square().sum()), rel=0.02)
    assert same < 0.6 * float((plain - before).square().sum())
