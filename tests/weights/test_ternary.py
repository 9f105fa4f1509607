"""Ternary weights: the published statistics, checkpoints that are ternary already, and what exact scales gain on real layers."""

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
from thrifty.core.grids import grouped, snap_scale
from thrifty.weights.base import Treatment, hold
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.ternary import Ternary

TARGETS = (Ternary(), Ternary(16), Ternary(24, "absmean"), Ternary(0, "absmean"), Ternary(16, "mse", 1.2))


@pytest.mark.parametrize("group_size", [0, 16])
def test_absmean_is_the_published_formula(group_size):
    values = draw(1, 12, WIDTH, dtype=torch.float32)
    groups = grouped(values, group_size)
    scale = snap_scale(groups.abs().mean(-1, keepdim=True), 8)
    expected = scale * (groups / scale).round().clamp(-1, 1)
    assert torch.equal(Ternary(group_size, "absmean").fit(values).project(values), expected.reshape(values.shape))


@given(st.integers(0, 10_000), st.sampled_from(TARGETS), st.sampled_from([1e-3, 1.0, 30.0]), st.booleans())
def test_projecting_is_idempotent_and_encoding_is_exact(seed, target, spread, weighted):
    values = draw(seed, 4, WIDTH, dtype=torch.float32) * spread
    values[0] = 0
    projected = check_fixed_point(target, values, draw(seed + 1, WIDTH, dtype=torch.float32).square() if weighted else None)
    for group in grouped(projected, target.group_size).flatten(0, 1):
        assert len(set(group.abs().tolist()) - {0.0}) <= 1


def test_codes_are_three_and_the_outline_tells_the_size():
    points = Ternary(16).fit(draw(2, 8, WIDTH))
    encoded, outline = points.encode(points.project(draw(2, 8, WIDTH))), Ternary(16).outline(8, WIDTH)
    assert set(encoded.tensors["codes"].unique().tolist()) == {-1, 0, 1}
    assert replace(encoded, tensors={}) == replace(outline, tensors={}) and encoded.bits == pytest.approx(1.585, abs=1e-3)
    assert {name: tensor.shape for name, tensor in encoded.tensors.items()} == {
        name: tensor.shape for name, tensor in outline.tensors.items()
    }


@pytest.mark.parametrize("group_size", [0, 16])
def test_a_ternary_matrix_in_bfloat16_stays_as_it_is(group_size):
    """So are published ternary checkpoints stored; the mean magnitude would make it smaller by its share of zeros."""
    groups = grouped(draw(3, 20, WIDTH), group_size)
    values = (torch.sign(groups) * (groups.abs() > 0.5) * groups.abs().mean(-1, keepdim=True).bfloat16()).reshape(20, WIDTH)
    values = values.bfloat16().float()
    assert torch.equal(Ternary(group_size).fit(values).project(values), values)
    shrunk = Ternary(group_size, "absmean").fit(values).project(values)
    assert torch.equal(torch.sign(shrunk), torch.sign(values)) and float(shrunk.abs().max()) < float(values.abs().max())


def test_the_statistics_of_normal_weights_are_those_of_the_paper_sheet():
    """Zeros and mean squared errors, worked out from the normal density; the best scale is 1.224 sigma."""
    values = draw(4, 1, 100_000)
    absmean, best = (Ternary(0, how).fit(values) for how in ("absmean", "mse"))
    zeros = float((absmean.project(values) == 0).double().mean())
    assert zeros == pytest.approx(0.310, abs=0.005)
    assert float((absmean.project(values) - values).square().mean()) == pytest.approx(0.263, abs=0.005)
    assert float((best.project(values) - values).square().mean()) == pytest.approx(0.190, abs=0.003)
    assert float(best.step.scale) == pytest.approx(1.224, abs=0.015)


def test_pruned_entries_stay_zero_and_groups_must_divide_the_width():
    values = draw(5, 6, WIDTH)
    mask = draw(6, 6, WIDTH) > 0
    assert bool((check_fixed_point(hold(Ternary(16), mask), values.float(), None)[~mask] == 0).all())
    with pytest.raises(InputError, match="group_size 32 does not divide the width 48 of fc; 16 does"):
        Ternary(32).check(8, WIDTH, "fc")
    with pytest.raises(InputError, match="ternary: range is wrong"):
        Ternary(range="minmax")
    with pytest.raises(InputError, match="ternary: stretch is wrong"):
        Ternary(stretch=3.0)


@pytest.mark.parametrize("solver", [Round(), Round(weighted=True), OBS(), OBS(act_order=True), AWP()], ids=str)
def test_every_solver_reaches_it(solver):
    work = problem(7, 8, WIDTH, dtype=torch.float32)
    solution = solver.solve(work, Ternary(16))
    assert torch.equal(solution.encoded.decode(), solution.values) and solution.loss > 0
    if isinstance(solver, OBS | AWP):
        assert solution.loss < 0.7 * Round().solve(work, Ternary(16)).loss


# -- on the model inside the package -------------------------------------------------------------------------------------


def test_exact_scales_never_lose_to_the_mean_magnitude_nor_to_a_search():
    """In the squared error that they minimize, on every group of every linear, weighed by the inputs and not."""
    for layer in layers():
        weight, energy = layer.problem.weight, layer.problem.gram.diagonal()
        for importance in (None, energy):

            def error(target, weight=weight, importance=importance):
                difference = grouped(weight - target.fit(weight, importance).project(weight), target.group_size).double().square()
                return (difference if importance is None else difference * importance.reshape(difference.shape[1:])).sum(-1)

            found = error(Ternary(64))
            for other in (Ternary(64, "absmean"), Int(levels=3, group_size=64, range="mse")):
                assert bool((found <= error(other) * (1 + 1e-6)).all())


def test_exact_scales_lose_less_in_what_the_layers_give():
    for solver, factor in ((Round(), 0.7), (Round(weighted=True), 0.7), (OBS(), 0.6)):
        mean, best = (losses(Treatment(solver, Ternary(64, how))) for how in ("absmean", "mse"))
        assert each(best, mean, factor)


def test_a_stretched_scale_loses_less_in_what_the_layers_give():
    """Above all with `obs`, on every linear; rounding gains over the model, on some linears it loses."""
    plain, stretched = (losses(Treatment(OBS(), Ternary(64, "mse", stretch))) for stretch in (1.0, 1.2))
    assert each(stretched, plain) and sum(stretched) < 0.85 * sum(plain)
    plain, stretched = (losses(Treatment(Round(), Ternary(64, "mse", stretch))) for stretch in (1.0, 1.2))
    assert sum(stretched) < 0.95 * sum(plain) and not each(stretched, plain)
