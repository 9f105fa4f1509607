"""K-quants as a target: what a block holds, every solver reaches it, and less is lost than on integer grids of as many bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.weights.problems import draw, problem
from tests.weights.test_real_model import each, losses
from tests.weights.test_targets import check_fixed_point
from thrifty.base.errors import InputError
from thrifty.core.grids import grouped
from thrifty.core.k_quants import FORMS
from thrifty.weights.base import Treatment, hold
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.descent import Descent
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int
from thrifty.weights.target.k_quant import KQuant

TARGETS = tuple(KQuant(kind) for kind in FORMS)
WIDTH = 256


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.type)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projecting_is_idempotent_onto_the_nearest_level_and_encoding_is_exact(target: KQuant, dtype: torch.dtype) -> None:
    values = (draw(1, 6, WIDTH) * 0.05).float().to(dtype)
    importance = draw(2, WIDTH, dtype=dtype).square() + 0.1
    projected = check_fixed_point(target, values, importance)
    points, form = target.fit(values, importance), target.form
    levels = torch.arange(form.low, form.high + 1)
    every = points.steps.step.double()[..., None, None] * levels - points.steps.offset.double()[..., None, None]
    nearest = (grouped(values, form.group_size).double()[..., None] - every).abs().amin(-1)
    torch.testing.assert_close(grouped(projected - values, form.group_size).double().abs(), nearest, rtol=1e-5, atol=1e-8)
    out = torch.empty(6, dtype=dtype)
    for index in (0, 17, 255):
        points.snap(values[:, index], index, out)
        torch.testing.assert_close((out - values[:, index]).abs(), (projected - values)[:, index].abs(), rtol=1e-5, atol=1e-8)
        assert bool((out.double()[:, None] == every[:, index // form.group_size, 0].float().double()).any(1).all())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.type)
def test_the_outline_tells_the_size(target: KQuant) -> None:
    values = draw(3, 4, 2 * WIDTH, dtype=torch.float32)
    points = target.fit(values)
    encoded, outline = points.encode(points.project(values)), target.outline(4, 2 * WIDTH)
    assert replace(encoded, tensors={}) == replace(outline, tensors={})
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in one.tensors.items()} for one in (encoded, outline)]
    assert shapes[0] == shapes[1]
    assert outline.stored_bits == 8 * 4 * 2 * target.form.nbytes and outline.fixed_width_bits == target.form.rate


def test_widths_and_zeros_that_it_does_not_hold() -> None:
    with pytest.raises(InputError, match="Q4_K has blocks of 256 inputs, which do not divide the width 384 of fc; take int there"):
        KQuant().check(8, 384, "fc")
    KQuant().check(8, 768, "fc")
    mask = draw(4, 4, WIDTH) > 0
    with pytest.raises(InputError, match="k_quant cannot keep the zeros"):
        hold(KQuant("Q4_K"), mask)
    for kind in ("Q3_K", "Q6_K"):
        found = Round().solve(problem(5, 4, WIDTH, dtype=torch.float32), hold(KQuant(kind), mask)).values
        assert bool((found[~mask] == 0).all()) and float((found[mask] == 0).float().mean()) < 0.3
    with pytest.raises(InputError, match="k_quant: type is wrong"):
        KQuant("Q8_K")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K"])
def test_every_solver_reaches_it(kind: str) -> None:
    work = problem(5, 8, WIDTH, dtype=torch.float32)
    solvers = (Round(), Round(weighted=True), OBS(), OBS(act_order=True), AWP(), Descent(rounds=2, sweeps=2))
    found = [solver.solve(work, KQuant(kind)) for solver in solvers]
    for solution in found:
        assert torch.equal(solution.encoded.decode(), solution.values) and solution.loss > 0
        assert KQuant(kind).outline(8, WIDTH).bits == solution.encoded.bits
    plain, weighted, swept, ordered, stepped, descended = (solution.loss for solution in found)
    assert weighted < plain and swept < 0.5 * weighted and ordered < swept and stepped < swept
    assert descended < 0.95 * ordered


# -- on the model inside the package -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "grid", "share"),
    [
        ("Q2_K", Int(2, 32, False, "mse"), 0.75),
        ("Q3_K", Int(3, 32, True, "mse"), 0.82),
        ("Q4_K", Int(4, 32, True, "mse"), 0.82),
    ],
)
def test_less_is_lost_than_on_integer_grids_of_about_as_many_bits(kind: str, grid: Int, share: float) -> None:
    """Bits with scales: 2.625 and 2.5625, 3.4375 and 3.5, 4.5 and 4.5."""
    target = KQuant(kind)
    assert abs(target.form.rate - grid.outline(WIDTH, WIDTH).stored_bits / WIDTH**2) < 0.07
    ours, theirs = (losses(Treatment(OBS(act_order=True), one)) for one in (target, grid))
    assert each(ours, theirs, 1.0)
    assert sum(ours) < share * sum(theirs)
