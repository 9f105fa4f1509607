"""Affine grids and HQQ: nearest values, what they gain beside integer zero points on real layers, and where they cannot be used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_affine_grids import heavy
from tests.weights.problems import draw, problem
from tests.weights.test_real_model import each, layers, losses
from tests.weights.test_targets import WIDTH, check_fixed_point
from thrifty.base.errors import InputError
from thrifty.core.grids import grouped
from thrifty.weights.base import Treatment, hold, solve
from thrifty.weights.preset.hqq import HQQ
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.descent import Descent
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.affine import Affine
from thrifty.weights.target.int import Int

TARGETS = (
    Affine(group_size=16), Affine(2, 0, "mse"), Affine(3, 24), Affine(8, 0), Affine(4, 16, "mse", iterations=0), Affine(5, 48, norm=0.3),
)  # fmt: skip


def distance(target: Affine | Int, weight: torch.Tensor) -> float:
    """Mean |w - v| on the nearest values."""
    return float((target.fit(weight).project(weight) - weight).abs().mean())


@given(st.integers(0, 10_000), st.sampled_from(TARGETS), st.sampled_from([1e-3, 1.0, 30.0]), st.booleans())
def test_projecting_is_idempotent_and_encoding_is_exact(seed, target, spread, weighted):
    values = draw(seed, 4, WIDTH, dtype=torch.float32) * spread
    values[0], values[1] = 0, spread
    check_fixed_point(target, values, draw(seed + 1, WIDTH, dtype=torch.float32).square() if weighted else None)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encoding_is_exact_in_both_precisions(target, dtype):
    projected = check_fixed_point(target, draw(1, 20, WIDTH, dtype=torch.float32).to(dtype) * 0.05, None)
    assert projected.dtype == dtype


@given(st.integers(0, 10_000), st.sampled_from(TARGETS))
def test_every_entry_gets_the_nearest_value(seed, target):
    values = draw(seed, 3, WIDTH)
    points = target.fit(values)
    levels = torch.arange(target.levels).double() - target.levels // 2
    groups = grouped(values, target.group_size)[..., None]
    numbers = points.line.scale[..., None, None] * levels + points.line.offset[..., None, None]
    found = (grouped(points.project(values), target.group_size) - groups[..., 0]).abs()
    torch.testing.assert_close(found, (groups - numbers).abs().amin(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_columns_snap_to_what_projecting_gives(target):
    values = draw(3, 9, WIDTH, dtype=torch.float32)
    points = target.fit(values)
    expected, found = points.project(values), torch.empty(9)
    for index in range(WIDTH):
        points.snap(values[:, index].contiguous(), index, found)
        assert torch.equal(found, expected[:, index])


def test_the_outline_is_that_of_the_codes():
    target = Affine(3, 16)
    points = target.fit(draw(4, 16, WIDTH, dtype=torch.float32))
    encoded, outline = points.encode(points.project(draw(4, 16, WIDTH, dtype=torch.float32))), target.outline(16, WIDTH)
    assert replace(encoded, tensors={}) == replace(outline, tensors={})
    assert {name: tensor.shape for name, tensor in encoded.tensors.items()} == {
        name: tensor.shape for name, tensor in outline.tensors.items()
    }
    assert encoded.stored_bits == outline.stored_bits == 16 * WIDTH * 3 + 2 * 16 * 16 * 3


def test_hqq_reads_no_calibration_data_and_rounds_to_nearest():
    preset = HQQ(3, 16, "mse", 0.5, 5.0, 1.1, 7)
    assert preset.expand() == Treatment(Round(), Affine(3, 16, "mse", 0.5, 5.0, 1.1, 7)) and not preset.expand().calibrated
    work = problem(5, 8, WIDTH, dtype=torch.float32)
    other = replace(work, gram=torch.eye(WIDTH))
    assert torch.equal(solve(work, HQQ(group_size=16).expand()).values, solve(other, HQQ(group_size=16).expand()).values)


def test_descent_fits_scales_and_offsets_and_loses_less_than_obs_on_every_linear_of_the_model():
    target = Affine(2, 64, "mse")
    ours, theirs = losses(Treatment(Descent(), target)), losses(Treatment(OBS(), target))
    assert sum(ours) < 0.95 * sum(theirs) and each(ours, theirs)


@pytest.mark.parametrize("solver", [Round(weighted=True), OBS(), OBS(act_order=True), AWP(), Descent()], ids=str)
def test_every_solver_reaches_it(solver):
    work = problem(5, 8, WIDTH, dtype=torch.float32)
    solution = solver.solve(work, Affine(2, 16))
    assert torch.equal(solution.encoded.decode(), solution.values) and solution.loss > 0
    if not isinstance(solver, Round):
        assert solution.loss < 0.7 * Round().solve(work, Affine(2, 16)).loss


def test_it_cannot_keep_zeros_and_says_so():
    with pytest.raises(InputError, match="affine cannot keep the zeros of an earlier step"):
        hold(Affine(), torch.ones(4, WIDTH, dtype=torch.bool))
    with pytest.raises(InputError, match="group_size 32 does not divide the width 48 of fc; 16 does"):
        Affine(2, 32).check(8, WIDTH, "fc")
    for wrong, name in (
        ({"bits": 1}, "bits"),
        ({"norm": 0.0}, "norm"),
        ({"norm": 1.5}, "norm"),
        ({"beta": 0.0}, "beta"),
        ({"kappa": 0.5}, "kappa"),
    ):
        with pytest.raises(InputError, match=f"hqq: {name} is wrong"):
            HQQ(**wrong)


@pytest.mark.parametrize(("bits", "nearer"), [(4, True), (3, True), (2, False)])
def test_heavy_tails_are_nearer_than_with_integer_zero_points_but_for_two_bits(bits, nearer):
    """Most of these weights are near zero and a few are far: of four values, one that is zero is worth more than where they lie."""
    weight = heavy(1, 200, 4, 64).reshape(200, 256)
    assert (distance(Affine(bits, 64), weight) < distance(Int(bits, 64, False), weight)) == nearer


# -- on the model inside the package -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.95), (3, 0.94), (2, 0.96)])
def test_weights_are_nearer_than_with_integer_zero_points_on_every_linear(bits, gain):
    """Both span the whole range; a zero point that is a whole number makes zero one of the values, wherever the weights lie."""
    for layer in layers():
        ours, theirs = (distance(target, layer.problem.weight) for target in (Affine(bits, 64), Int(bits, 64, False)))
        assert ours < gain * theirs, layer.name


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.96), (3, 0.95), (2, 0.83)])
def test_parts_of_the_range_lose_less_than_with_integer_zero_points_on_every_linear(bits, gain):
    for solver in (Round(), OBS()):
        ours, theirs = (losses(Treatment(solver, target)) for target in (Affine(bits, 64, "mse"), Int(bits, 64, False, "mse")))
        assert sum(ours) < gain * sum(theirs) and each(ours, theirs), solver
