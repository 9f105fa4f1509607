"""Centred, scaled and rotated inputs: the function stays, constants cost nothing, and rounding loses less than without each part.

Federici et al. (2025), arXiv 2506.09932.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.base.anatomy import Space
from thrifty.core.activations import Rounding
from thrifty.core.hadamard import Rotation
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.transform.hadanorm import HadaNorm, spread
from thrifty.weights.transform.smoothquant import SmoothQuant

WIDTH = 128
NORM = Space("in", WIDTH, producers=("norm",), consumers=("q",), commutes_with="scale", holds_shift=True)
HEADS = Space("o.in", WIDTH, "kv_group", 64, ("v",), ("o",), "any", 2, holds_shift=True)
WEIGHT = draw(1, 96, WIDTH, dtype=torch.float32)


def uneven(seed: int, tokens: int = 256, spread_out: float = 3.0) -> torch.Tensor:
    """Channels with means and scales of their own."""
    scales = draw(seed + 1, WIDTH, dtype=torch.float32).exp()
    return draw(seed, tokens, WIDTH, dtype=torch.float32) * scales + spread_out * draw(seed + 2, WIDTH, dtype=torch.float32)


def signal_to_noise(inputs: torch.Tensor, rewrite: Rewrite | None = None, bits: int = 4) -> float:
    """Decibels of the output when inputs are rounded, each token on its own symmetric grid."""
    rounding, exact = Rounding(bits, "token", True), inputs @ WEIGHT.T
    if rewrite is None:
        found = rounding(inputs) @ WEIGHT.T
    else:
        found = rounding(rewrite.of(inputs)) @ rewrite.consumer(WEIGHT).T + rewrite.correction(WEIGHT)
    return 10 * math.log10(float(exact.square().sum() / (found - exact).square().sum()))


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_without_rounding_the_function_stays(seed, heads, alpha):
    inputs, bias = uneven(seed), draw(seed + 3, 96, dtype=torch.float32)
    found = HadaNorm(alpha).rewrite(HEADS if heads else NORM, [WEIGHT], Statistics.of(inputs), None)
    exact = inputs.double() @ WEIGHT.double().T + bias.double()
    double = Rewrite(found.space, found.scale.double(), found.turn, found.shift.double())
    after = double.of(inputs.double()) @ double.consumer(WEIGHT.double()).T + bias + double.correction(WEIGHT.double())
    torch.testing.assert_close(after, exact, rtol=1e-11, atol=1e-11)
    single = found.of(inputs) @ found.consumer(WEIGHT).T + bias + found.correction(WEIGHT)
    assert float((single - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@given(st.integers(0, 10_000))
def test_a_constant_in_all_tokens_changes_nothing(seed):
    inputs = uneven(seed, spread_out=0)
    constant = 5 * draw(seed + 4, WIDTH, dtype=torch.float32)
    first, second = (HadaNorm(0.0).rewrite(NORM, [WEIGHT], Statistics.of(x), None).of(x) for x in (inputs, inputs + constant))
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


def test_centring_and_rotating_beats_either_alone_and_nothing():
    """The order of the sheet's check: nothing, centring, rotation, both."""
    for seed in (10, 20, 30):
        inputs = uneven(seed)
        seen, ones, turn = Statistics.of(inputs), torch.ones(WIDTH), Rotation.random(WIDTH, 0)
        nothing = signal_to_noise(inputs)
        centred = signal_to_noise(inputs, HadaNorm(0.0).rewrite(NORM, [WEIGHT], seen, None))
        turned = signal_to_noise(inputs, Rewrite(NORM, ones, turn))
        both = signal_to_noise(inputs, Rewrite(NORM, ones, turn, seen.mean))
        assert centred > nothing + 1 and turned > nothing + 1
        assert both > max(centred, turned) + 2
        smoothed = signal_to_noise(inputs, SmoothQuant().rewrite(NORM, [WEIGHT], seen, None))
        assert both > smoothed


def test_where_all_means_are_zero_centring_changes_little():
    inputs = uneven(40, tokens=4000, spread_out=0)
    seen, ones, turn = Statistics.of(inputs), torch.ones(WIDTH), Rotation.random(WIDTH, 0)
    turned = signal_to_noise(inputs, Rewrite(NORM, ones, turn))
    assert signal_to_noise(inputs, Rewrite(NORM, ones, turn, seen.mean)) == pytest.approx(turned, abs=0.1)


def test_heads_are_rotated_and_norms_are_not():
    seen = Statistics.of(uneven(50))
    norm, heads = (HadaNorm().rewrite(space, [WEIGHT], seen, None) for space in (NORM, HEADS))
    assert norm.turn is None and heads.turn is not None and heads.turn.order == 32
    torch.testing.assert_close(norm.shift, seen.mean)
    for values in (heads.shift, heads.scale, heads.turn.signs):
        copies = values.reshape(-1, 2, 32)
        assert torch.equal(copies[:, 0], copies[:, 1])
    assert not HadaNorm().suits(Space("in", WIDTH, producers=("norm",), consumers=("q",), commutes_with="scale"))
    assert HadaNorm().rewrite(NORM, [WEIGHT], Statistics.empty(WIDTH), None) is None


def test_scales_are_spreads_to_a_power_around_one():
    variance = draw(60, WIDTH, dtype=torch.float32).exp()
    found = spread(variance, 0.5)
    assert float(found.log().mean()) == pytest.approx(0, abs=1e-6)
    ratio = found / variance.pow(0.25)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert torch.equal(spread(variance, 0.0), torch.ones(WIDTH))
    variance[7] = 0
    assert float(spread(variance, 1.0)[7]) == 1.0
    assert torch.equal(spread(torch.zeros(4), 1.0), torch.ones(4))
