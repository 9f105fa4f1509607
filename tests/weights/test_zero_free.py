"""Zero-free grids: the quantizer of ParetoQ, exact scales, and what they gain beside integer grids of the same bits on real layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw, problem
from tests.weights.test_real_model import each, layers, losses
from tests.weights.test_targets import WIDTH, check_fixed_point
from thrifty.base.errors import InputError
from thrifty.core.grids import grouped
from thrifty.data import default_model
from thrifty.export.compressed import library_decode, pack, scheme_of
from thrifty.models import open_model
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve
from thrifty.weights.base import Treatment, hold
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.zero_free import ZeroFree

TARGETS = (ZeroFree(), ZeroFree(2, 16, "minmax"), ZeroFree(1, 16), ZeroFree(3, 24), ZeroFree(2, 16, "mse", 1.15), ZeroFree(1, 0, "minmax"))


def test_the_levels_are_those_of_stretched_elastic_quantization():
    """As ParetoQ writes them: a/2 (round(2 clamp(w / a) - 1/2) + 1/2), a = max |w| of the row; powers of two, so that nothing rounds."""
    values = draw(1, 12, WIDTH, dtype=torch.float32)
    values /= values.abs().amax(1, keepdim=True)
    reach = torch.exp2(torch.arange(-6.0, 6.0))[:, None]
    inside = values.clamp(-0.99, 0.99)
    expected = reach * ((2 * inside - 0.5).round() + 0.5) / 2
    assert torch.equal(ZeroFree(range="minmax").fit(reach * values).project(reach * values), expected)
    assert set((expected / reach).unique().tolist()) == {-0.75, -0.25, 0.25, 0.75}


@given(st.integers(0, 10_000), st.sampled_from(TARGETS), st.sampled_from([1e-3, 1.0, 30.0]), st.booleans())
def test_projecting_is_idempotent_and_encoding_is_exact(seed, target, spread, weighted):
    values = draw(seed, 4, WIDTH, dtype=torch.float32) * spread
    values[0] = 0
    points = target.fit(values)
    projected = check_fixed_point(target, values, draw(seed + 1, WIDTH, dtype=torch.float32).square() if weighted else None)
    assert not bool((projected == 0).any())
    codes = points.encode(points.project(values)).tensors["codes"]
    assert bool((codes % 2 == 1).all()) and int(codes.abs().max()) <= 2**target.bits - 1


@given(st.integers(0, 10_000), st.sampled_from(TARGETS))
def test_every_entry_gets_the_nearest_level(seed, target):
    values = draw(seed, 3, WIDTH)
    points = target.fit(values)
    levels = torch.arange(1 - 2**target.bits, 2**target.bits, 2).double()
    groups = grouped(values, target.group_size)[..., None]
    nearest = (groups - points.scale[..., None, None] * levels).abs().amin(-1)
    found = (grouped(points.project(values), target.group_size) - groups[..., 0]).abs()
    torch.testing.assert_close(found, nearest, rtol=1e-12, atol=1e-12)


def test_the_scale_of_one_bit_is_the_mean_magnitude():
    values = draw(2, 8, WIDTH)
    scale = ZeroFree(1).fit(values).scale[:, 0]
    torch.testing.assert_close(scale, values.abs().mean(1), rtol=2**-8, atol=0)


def test_normal_weights_lose_what_the_best_even_levels_lose():
    """Max (1960): 0.3634, 0.1188 and 0.0374 for 2, 4 and 8 evenly spaced levels."""
    values = draw(3, 1, 100_000)
    for bits, expected in ((1, 0.3634), (2, 0.1188), (3, 0.0374)):
        found = float((ZeroFree(bits).fit(values).project(values) - values).square().mean())
        assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_places_of_four_bits_hold_the_codes(bits):
    values = draw(4, 16, WIDTH, dtype=torch.float32)
    target = ZeroFree(bits, 16)
    points = target.fit(values)
    encoded, outline = points.encode(points.project(values)), target.outline(16, WIDTH)
    assert replace(encoded, tensors={}) == replace(outline, tensors={}) and encoded.bits == bits
    assert {name: tensor.shape for name, tensor in encoded.tensors.items()} == {
        name: tensor.shape for name, tensor in outline.tensors.items()
    }
    scheme = scheme_of(encoded)
    assert scheme.bits == 4 and scheme.symmetric
    assert torch.equal(library_decode(pack("fc", encoded), "fc", scheme), encoded.decode())


def test_it_cannot_keep_zeros_and_says_so():
    with pytest.raises(InputError, match="zero_free cannot keep the zeros of an earlier step"):
        hold(ZeroFree(), torch.ones(4, WIDTH, dtype=torch.bool))
    steps = [{"wanda": {"pattern": "2:4"}}, {"solve": {"by": "obs", "into": {"zero_free": {}}}}]
    with pytest.raises(InputError, match="step 2: zero_free cannot keep the zeros"):
        resolve(complete(parse_recipe({"steps": steps})), open_model(default_model()).anatomy)
    with pytest.raises(InputError, match="group_size 32 does not divide the width 48 of fc; 16 does"):
        ZeroFree(2, 32).check(8, WIDTH, "fc")
    with pytest.raises(InputError, match="zero_free: bits is wrong"):
        ZeroFree(4)


@pytest.mark.parametrize("solver", [Round(), Round(weighted=True), OBS(), OBS(act_order=True), AWP()], ids=str)
def test_every_solver_reaches_it(solver):
    work = problem(5, 8, WIDTH, dtype=torch.float32)
    solution = solver.solve(work, ZeroFree(2, 16))
    assert torch.equal(solution.encoded.decode(), solution.values) and solution.loss > 0
    if isinstance(solver, OBS | AWP):
        assert solution.loss < 0.7 * Round().solve(work, ZeroFree(2, 16)).loss


# -- on the model inside the package -------------------------------------------------------------------------------------


def test_two_bits_without_zero_lose_less_than_a_symmetric_integer_grid_on_most_linears():
    """With `obs` and the best range that each has; the integer grid with either sign of its scales, which nearly makes up for its zero."""
    ours, theirs = (losses(Treatment(OBS(), target)) for target in (ZeroFree(2, 32), Int(2, 32, True, "mse")))
    assert sum(one < other for one, other in zip(ours, theirs, strict=True)) >= 14  # of 21
    assert sum(ours) < 0.99 * sum(theirs)


def test_an_integer_grid_over_the_whole_range_loses_more_over_the_model_and_less_on_some_linears():
    """Its steps are wider: output projections with `obs` gain by that, and a stretched scale catches up with it."""
    whole = losses(Treatment(OBS(), Int(2, 32)))
    best, stretched = (losses(Treatment(OBS(), ZeroFree(2, 32, "mse", stretch))) for stretch in (1.0, 1.15))
    assert sum(best) < 0.75 * sum(whole) and not each(best, whole)
    assert sum(stretched) < 0.93 * sum(best) and each(stretched, whole, 1.05)


def test_exact_scales_never_lose_to_those_that_span_all_weights():
    for layer in layers():
        weight, energy = layer.problem.weight, layer.problem.gram.diagonal()
        best, spanned = ((weight - ZeroFree(2, 64, how).fit(weight, energy).project(weight)).square() * energy for how in ("mse", "minmax"))
        assert bool((grouped(best, 64).double().sum(-1) <= grouped(spanned, 64).double().sum(-1) * (1 + 1e-6)).all())
