"""AWQ against trying every exponent on the inputs themselves, SmoothQuant against its formula, and both keep the function.

Lin et al. (2023), arXiv 2306.00978. Xiao, Lin, Seznec, Wu, Demouth and Han (2022), arXiv 2211.10438.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.base.anatomy import Space
from thrifty.base.records import Problem
from thrifty.core.fold import scale_columns
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.weights.base import Target, Treatment, solve
from thrifty.weights.preset.gptq import GPTQ
from thrifty.weights.preset.rtn import RTN
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.top_k import TopK
from thrifty.weights.transform.awq import AWQ
from thrifty.weights.transform.smoothquant import SmoothQuant

WIDTH = 32
SPACE = Space("fc.in", WIDTH)


def inputs_of(seed: int, tokens: int = 200, width: int = WIDTH) -> torch.Tensor:
    """A few channels are much larger than the rest."""
    return draw(seed, tokens, width, dtype=torch.float32) * (1.2 * draw(seed + 1, width, dtype=torch.float32)).exp()


def output_error(inputs: torch.Tensor, weights: list[torch.Tensor], scale: torch.Tensor, target: Target) -> float:
    """Mean squared change of the outputs when the consumers of x / s hold Q(W diag(s)), from the inputs themselves."""
    inputs, total = inputs.double(), 0.0
    importance = ((inputs / scale.double()).square().mean(0)).float()
    for weight in weights:
        held = target.fit(weight * scale, importance).project(weight * scale)
        change = (inputs / scale.double()) @ held.double().T - inputs @ weight.double().T
        total += float(change.square().sum()) / inputs.shape[0]
    return total


def rounded(target: Target) -> Treatment:
    return Treatment(Round(weighted=True), target)


def candidates(inputs: torch.Tensor, grid: int) -> list[torch.Tensor]:
    mean = inputs.abs().mean(0)
    raised = [mean ** (step / grid) for step in range(grid)]
    return [scale / (scale.max() * scale.min()).sqrt() for scale in raised]


# -- AWQ -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [Int(4, 16), Int(3, 0, False), Int(3, 8)], ids=str)
@pytest.mark.parametrize("grid", [5, 20])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_scale_is_the_best_of_all_tried(target, grid, seed):
    inputs = inputs_of(seed)
    weights = [draw(seed + 10, 12, WIDTH, dtype=torch.float32), draw(seed + 11, 20, WIDTH, dtype=torch.float32)]
    found = AWQ(grid).rewrite(SPACE, weights, Statistics.of(inputs), rounded(target))
    tried = candidates(inputs, grid)
    errors = [output_error(inputs, weights, scale, target) for scale in tried]
    best = min(range(grid), key=errors.__getitem__)
    assert best > 0
    torch.testing.assert_close(found.scale, tried[best], rtol=1e-4, atol=1e-6)
    assert errors[best] < errors[0]
    assert found.space == SPACE


@given(st.integers(0, 10_000), st.sampled_from([Int(4, 8), Int(8, 0), Int(2, 0, False, "mse")]))
def test_it_is_never_worse_than_plain_rounding(seed, target):
    inputs, weights = inputs_of(seed, 40), [draw(seed + 5, 6, WIDTH, dtype=torch.float32)]
    found = AWQ(6).rewrite(SPACE, weights, Statistics.of(inputs), rounded(target))
    errors = [output_error(inputs, weights, scale, target) for scale in candidates(inputs, 6)]
    if found is None:
        assert min(errors) >= errors[0] * (1 - 1e-4)
    else:
        assert output_error(inputs, weights, found.scale, target) < errors[0]
        assert bool((found.scale > 0).all() & found.scale.isfinite().all())
        assert float(found.scale.max() * found.scale.min()) == pytest.approx(1, rel=1e-4)


def test_nothing_to_gain_nothing_changed():
    weight = draw(1, 10, WIDTH, dtype=torch.float32)
    signs = torch.sign(draw(2, 64, WIDTH, dtype=torch.float32))
    assert AWQ().rewrite(SPACE, [weight], Statistics.of(signs), rounded(Int(4, 8))) is None
    exact = torch.randint(-8, 8, (10, WIDTH), generator=torch.Generator().manual_seed(3)).float()
    exact[:, ::16], exact[:, 1::16] = -8.0, 7.0
    assert AWQ().rewrite(SPACE, [exact], Statistics.of(inputs_of(4)), rounded(Int(4, 16, False))) is None
    assert AWQ().rewrite(SPACE, [weight], Statistics.empty(WIDTH), rounded(Int(4, 8))) is None
    assert AWQ().rewrite(SPACE, [weight], Statistics.of(inputs_of(4)), None) is None


def test_a_gain_on_the_searched_rows_only_is_no_gain():
    """Every other row is looked at; the rows between lie on the grid already and would pay for any scaling."""
    weight = draw(5, 1024, WIDTH, dtype=torch.float32)
    exact = torch.randint(-8, 8, (512, WIDTH), generator=torch.Generator().manual_seed(6)).float()
    exact[:, ::16], exact[:, 1::16] = -8.0, 7.0
    statistics, target = Statistics.of(inputs_of(7)), Int(4, 16, False)
    assert AWQ().rewrite(SPACE, [weight[::2]], statistics, rounded(target)) is not None
    weight[1::2] = 16 * exact
    assert AWQ().rewrite(SPACE, [weight], statistics, rounded(target)) is None


def test_many_rows_are_sampled_and_the_gain_holds_for_all():
    inputs, weight, target = inputs_of(8), draw(9, 1500, WIDTH, dtype=torch.float32), Int(3, 16)
    found = AWQ().rewrite(SPACE, [weight], Statistics.of(inputs), rounded(target))
    errors = [output_error(inputs, [weight], scale, target) for scale in candidates(inputs, 20)]
    chosen = output_error(inputs, [weight], found.scale, target)
    assert chosen < 0.95 * errors[0]
    assert chosen < 1.05 * min(errors)


@pytest.mark.parametrize("preset", [RTN(3, 8), RTN(3, 8, range="mse"), GPTQ(3, 8), GPTQ(4, 16, symmetric=False), GPTQ(2, 0)], ids=str)
def test_it_is_never_worse_than_what_really_comes_next_without_it(preset):
    """Up to 512 rows, all of which are looked at."""
    changed = 0
    for seed in range(30, 42):
        inputs, weight = inputs_of(seed), draw(seed + 20, 24, WIDTH, dtype=torch.float32)
        statistics, treatment = Statistics.of(inputs), preset.expand()
        plain = solve(Problem(weight, statistics.gram, 200), treatment).loss
        found = AWQ().rewrite(SPACE, [weight], statistics, treatment)
        if found is not None:
            changed += 1
            assert solve(Problem(weight * found.scale, found.under(statistics.gram), 200), treatment).loss < plain
    assert changed > 2


def test_channels_that_never_spoke_keep_one():
    inputs = inputs_of(10)
    inputs[:, [3, 17]] = 0
    found = AWQ().rewrite(SPACE, [draw(11, 12, WIDTH, dtype=torch.float32)], Statistics.of(inputs), rounded(Int(3, 8)))
    assert found.scale[[3, 17]].tolist() == [1.0, 1.0]
    others = found.scale[[index for index in range(WIDTH) if index not in (3, 17)]]
    assert float(others.max() * others.min()) == pytest.approx(1, rel=1e-5)
    assert float(others.max()) > 1.2


def test_copies_of_a_channel_share_their_scale():
    space = Space("o.in", WIDTH, "kv_group", 8, repeat=2)
    found = AWQ().rewrite(space, [draw(12, 12, WIDTH, dtype=torch.float32)], Statistics.of(inputs_of(13)), rounded(Int(3, 8)))
    copies = found.scale.reshape(-1, 2, 4)
    assert torch.equal(copies[:, 0], copies[:, 1])
    assert float(found.scale.std()) > 0.05


@pytest.mark.parametrize("method", [AWQ(), SmoothQuant()], ids=lambda method: method.name)
def test_the_function_without_rounding_stays_the_same(method):
    inputs, weights = inputs_of(14), [draw(15, 9, WIDTH, dtype=torch.float32), draw(16, 5, WIDTH, dtype=torch.float32)]
    found = method.rewrite(SPACE, weights, Statistics.of(inputs), rounded(Int(3, 8)))
    assert not torch.allclose(found.scale, torch.ones(WIDTH))
    for weight in weights:
        after = (inputs / found.scale) @ scale_columns(weight, found.scale).T
        torch.testing.assert_close(after, inputs @ weight.T, rtol=1e-4, atol=1e-4)
    gram = Statistics.of(inputs).gram
    torch.testing.assert_close(found.under(gram), Statistics.of(inputs / found.scale).gram, rtol=1e-4, atol=1e-4)


def test_a_mask_that_weighs_its_inputs_does_not_see_the_scale():
    """Wanda's choice stays the same when a scale moves between inputs and weights."""
    weight = draw(17, 12, WIDTH, dtype=torch.float32)
    statistics = Statistics.of(inputs_of(18))
    scale = candidates(inputs_of(18), 20)[10]
    plain = TopK(0.5).fit(weight, statistics.gram.diagonal()).project(weight)
    scaled = TopK(0.5).fit(weight * scale, statistics.under(Rewrite(SPACE, scale)).gram.diagonal()).project(weight * scale)
    assert torch.equal(plain != 0, scaled != 0)


# -- SmoothQuant ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.85, 1.0])
def test_the_scale_is_the_formula_over_all_consumers(alpha):
    inputs, weights = inputs_of(20), [draw(21, 9, WIDTH, dtype=torch.float32), 3 * draw(22, 5, WIDTH, dtype=torch.float32)]
    found = SmoothQuant(alpha).rewrite(SPACE, weights, Statistics.of(inputs), None).scale
    for channel in range(WIDTH):
        largest_input = max(abs(value) for value in inputs[:, channel].tolist())
        largest_weight = max(abs(value) for weight in weights for value in weight[:, channel].tolist())
        assert float(found[channel]) == pytest.approx(largest_input**alpha / largest_weight ** (1 - alpha), rel=1e-5)


def test_at_one_half_inputs_and_weights_end_up_equally_large():
    inputs, weights = inputs_of(23), [draw(24, 9, WIDTH, dtype=torch.float32), draw(25, 5, WIDTH, dtype=torch.float32)]
    scale = SmoothQuant(0.5).rewrite(SPACE, weights, Statistics.of(inputs), None).scale
    largest = torch.cat([weight * scale for weight in weights]).abs().amax(0)
    torch.testing.assert_close((inputs / scale).abs().amax(0), largest, rtol=1e-5, atol=0)


def test_copies_share_the_scale_of_their_largest():
    space = Space("o.in", WIDTH, "kv_group", 8, repeat=2)
    inputs, weight = inputs_of(26), draw(27, 9, WIDTH, dtype=torch.float32)
    scale = SmoothQuant(0.5).rewrite(space, [weight], Statistics.of(inputs), None).scale
    largest_inputs = inputs.abs().amax(0).reshape(-1, 2, 4).amax(1)
    largest_weights = weight.abs().amax(0).reshape(-1, 2, 4).amax(1)
    for copy in range(2):
        torch.testing.assert_close(scale.reshape(-1, 2, 4)[:, copy], (largest_inputs / largest_weights).sqrt())


def test_silent_channels_and_channels_without_weights_are_no_trouble():
    inputs, weight = inputs_of(28), draw(29, 9, WIDTH, dtype=torch.float32)
    inputs[:, 4], weight[:, 6] = 0, 0
    scale = SmoothQuant(0.5).rewrite(SPACE, [weight], Statistics.of(inputs), None).scale
    assert float(scale[4]) == 1.0
    assert float(scale[6]) == pytest.approx(float((inputs[:, 6].abs().max() / 1e-5).sqrt()), rel=1e-4)
    assert SmoothQuant().rewrite(SPACE, [weight], Statistics.empty(WIDTH), None) is None
