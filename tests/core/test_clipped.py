"""Grids whose ends follow statistics or the range of the weights: where they start, which way gradients point, and what they come to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.core.activations import Histogram, Rounding
from thrifty.core.clipped import INPUT_MOMENTUM, MOMENTUM, ClippedInputs, ClippedWeight
from thrifty.core.grids import snap_scale
from thrifty.weights.activation.static import Static
from thrifty.weights.target.int import Int
from thrifty.weights.target.ternary import Ternary
from thrifty.weights.target.zero_free import ZeroFree

TARGETS = [Int(2, 8), Int(3, 0), Int(3, 0, symmetric=False), Int(4, 8, symmetric=False), Ternary(8), ZeroFree(2, 8), Int(2, 0, range="mse")]
ENDS = ("statistics", "range")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def begun(target, ends: str, seed: int = 0, rows: int = 5, width: int = 24) -> ClippedWeight:
    """Rounded to codes that rounding the weight itself would not give."""
    weight = draw(seed, rows, width)
    points = target.fit(weight)
    return ClippedWeight(weight, points.encode(points.project(weight + 0.1 * draw(seed + 1, rows, width))), target.codes, ends)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_training_starts_at_the_point_that_was_found(target, ends: str) -> None:
    grid = begun(target, ends)
    encoded = grid.encoded()
    assert torch.equal(grid.values(), grid.start.decode())
    for name, tensor in grid.start.tensors.items():
        assert torch.equal(encoded.tensors[name], tensor)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
@given(seed=st.integers(0, 1000))
def test_wherever_it_goes_it_is_on_a_grid_that_a_container_holds(target, ends: str, seed: int) -> None:
    grid = begun(target, ends, seed, rows=3, width=16)
    with torch.no_grad():
        for tensor in grid.parameters.values():
            tensor += draw(seed + 2, *tensor.shape)
        for _ in range(3):
            grid.settle()
    encoded = grid.encoded()
    torch.testing.assert_close(encoded.decode(), grid.values().detach(), rtol=1e-6, atol=1e-6)
    codes = target.codes
    assert set(encoded.tensors["codes"].flatten().tolist()) <= set(range(codes.low, codes.high + 1, codes.stride))
    scale = encoded.tensors["scale"]
    assert torch.equal(scale, snap_scale(scale, codes.scale_bits))
    if "zero_point" in encoded.tensors:
        assert codes.low <= int(encoded.tensors["zero_point"].min()) and int(encoded.tensors["zero_point"].max()) <= codes.high


@pytest.mark.parametrize("target", [Int(3, 0, symmetric=False), Int(4, 8)], ids=repr)
def test_the_range_gives_the_grid_of_min_and_max(target) -> None:
    """Training by min-max from a plain rounding: after any step the grid is that of a plain rounding of the latent weights."""
    weight = draw(3, 5, 24)
    points = target.fit(weight)
    grid = ClippedWeight(weight, points.encode(points.project(weight)), target.codes, "range")
    with torch.no_grad():
        grid.offset += 0.3 * draw(4, *grid.offset.shape)
        grid.settle()
    again = target.fit(grid.latent().detach().reshape(grid.shape)).step.scale
    assert not torch.equal(again, points.step.scale)
    # scales are rounded to a few significant bits twice
    torch.testing.assert_close(grid.encoded().tensors["scale"], again, rtol=2.0 ** (1 - target.codes.scale_bits), atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_factors_that_reach_to_the_range_give_its_grid(symmetric: bool) -> None:
    """With alpha so large that the ends lie at min and max, statistics round as min-max does."""
    target = Int(4, 0, symmetric)
    weight = draw(0, 6, 64)
    points = target.fit(weight)
    narrow = Int(4, 0, symmetric, range="mse").fit(0.5 * weight)
    grid = ClippedWeight(weight, narrow.encode(narrow.project(weight)), target.codes, "statistics")
    with torch.no_grad():
        grid.offset.zero_()
        low, high = weight.amin(1).clamp_max(0)[:, None, None], weight.amax(1).clamp_min(0)[:, None, None]
        if symmetric:
            high = torch.maximum(-low, high) / 7.5 * 7
        grid.high.copy_((high - grid.centre) / (grid.spread * grid.reach[1]))
        grid.low.copy_((low - grid.centre) / (grid.spread * grid.reach[0]))
    assert torch.equal(grid.encoded().decode(), points.encode(points.project(weight)).decode())


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_are_the_closed_form(symmetric: bool) -> None:
    """Inside (round(u) - u) ds to the factors and the slope to the weight; beyond an end its own movement, and nothing to the weight."""
    target = Int(3, 0, symmetric)
    weight = draw(0, 4, 40)
    points = target.fit(0.6 * weight)
    grid = ClippedWeight(weight, points.encode(points.project(weight)), target.codes, "statistics")
    with torch.no_grad():
        grid.offset.zero_()
    slopes = draw(2, 4, 1, 40)
    (grid.values() * slopes.view(4, 40)).sum().backward()
    scale, zero = (tensor.detach() for tensor in grid._grid())
    exact = weight.view(4, 1, 40) / scale
    multiple = torch.round(exact)
    below, above = multiple < target.codes.low - zero, multiple > target.codes.high - zero
    inside = ~below & ~above
    assert bool(below.any()) and bool(above.any())
    torch.testing.assert_close(grid.offset.grad, torch.where(inside, slopes * grid.scale, 0.0))
    codes = target.codes.high - target.codes.low
    to_high = grid.spread * grid.reach[1]  # d high / d its factor
    if symmetric:
        step = to_high / target.codes.high
        moves = torch.where(inside, multiple - exact, multiple.clamp(target.codes.low, target.codes.high)) * step
        torch.testing.assert_close(grid.high.grad, (slopes * moves).sum(-1, keepdim=True), rtol=1e-4, atol=1e-4)
        return
    to_low = grid.spread * grid.reach[0]
    # the zero point is a whole number: what it is rounded by goes with the scale
    place = (target.codes.low - (grid.centre + to_low) / scale).detach()
    rounded = zero - place
    high_moves = torch.where(inside, multiple - exact, torch.where(above, codes - rounded, -rounded)) * to_high / codes
    low_moves = torch.where(inside, exact - multiple, torch.where(above, rounded, codes + rounded)) * to_low / codes
    torch.testing.assert_close(grid.high.grad, (slopes * high_moves).sum(-1, keepdim=True), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grid.low.grad, (slopes * low_moves).sum(-1, keepdim=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["high", "low", "offset"])
def test_gradients_are_finite_differences_with_roundings_held(name: str) -> None:
    """In double precision, with what each entry was rounded by, and whether it was cut, held as it is: that is what the gradient is of."""
    target = Int(3, 0, symmetric=False)
    weight = draw(5, 2, 30)
    points = target.fit(0.5 * weight)
    grid = ClippedWeight(weight, points.encode(points.project(weight)), target.codes, "statistics")
    with torch.no_grad():
        grid.offset.zero_()  # out of the cells that it starts in
    slopes = draw(6, 2, 30).double()
    (grid.values() * slopes).sum().backward()
    fixed = {key: tensor.detach().double() for key, tensor in (("high", grid.high), ("low", grid.low), ("offset", grid.offset))}
    reach, centre, spread = [end.double() for end in grid.reach], grid.centre.double(), grid.spread.double()

    def parts(low: Tensor, high: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = centre + spread * reach[0] * low, centre + spread * reach[1] * high
        scale = (high - low) / 7
        return scale, target.codes.low - low / scale, grid.weight.double() + offset * grid.scale.double()

    scale, place, latent = parts(**fixed)
    snapped, zero = (tensor.detach().double() for tensor in grid._grid())
    by_scale, by_zero = snapped - scale, zero - (target.codes.low - (centre + spread * reach[0] * fixed["low"]) / snapped)
    by_weight = torch.round(latent / snapped) - latent / snapped
    below, above = (torch.round(latent / snapped) + zero < target.codes.low), (torch.round(latent / snapped) + zero > target.codes.high)
    assert bool(below.any()) and bool(above.any())

    def loss(**now: Tensor) -> float:
        scale, _, latent = parts(**now)
        scale = scale + by_scale
        zero = target.codes.low - (centre + spread * reach[0] * now["low"]) / scale + by_zero
        multiple = torch.where(below, target.codes.low - zero, torch.where(above, target.codes.high - zero, latent / scale + by_weight))
        return float(((multiple * scale).view(2, 30) * slopes).sum())

    found = getattr(grid, name).grad.double()
    for place in torch.randperm(found.numel(), generator=torch.Generator().manual_seed(7))[:6].tolist():
        ends = []
        for sign in (1, -1):
            moved = fixed[name].clone()
            moved.view(-1)[place] += sign * 1e-6
            ends.append(loss(**{**fixed, name: moved}))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(found.view(-1)[place]), rel=1e-3, abs=1e-3)


def test_statistics_follow_slowly_and_only_when_settled() -> None:
    grid = begun(Int(2, 0, symmetric=False), "statistics", 8)
    first = {name: tensor.clone() for name, tensor in grid.state.items()}
    with torch.no_grad():
        grid.offset += 1.0
    grid.values(), grid.encoded()
    assert all(torch.equal(tensor, first[name]) for name, tensor in grid.state.items())
    with torch.no_grad():
        grid.settle()
    latent = grid.latent().detach()
    torch.testing.assert_close(grid.centre, (1 - MOMENTUM) * first["centre"] + MOMENTUM * latent.mean(-1, keepdim=True))
    torch.testing.assert_close(grid.spread, (1 - MOMENTUM) * first["spread"] + MOMENTUM * latent.std(-1, correction=0, keepdim=True))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_of_zeros_stays_tame(ends: str, symmetric: bool) -> None:
    target, weight = Int(3, 0, symmetric), torch.zeros(2, 8)
    points = target.fit(weight)
    grid = ClippedWeight(weight, points.encode(points.project(weight)), target.codes, ends)
    assert torch.equal(grid.values(), weight)
    with torch.no_grad():
        grid.offset += 0.001 * draw(0, *grid.offset.shape)
        grid.settle()
    assert float(grid.values().detach().abs().max()) <= 10


def of_inputs(symmetric: bool, bits: int = 3, rule: str = "mse") -> tuple[Tensor, Rounding, ClippedInputs]:
    """Inputs, the grid that a histogram of them gives, and that grid on its way."""
    inputs = 0.3 + draw(0, 40, 16)
    seen = Histogram.of(inputs)
    rounding = Static(bits, rule, symmetric=symmetric).fit(seen)
    return inputs, rounding, ClippedInputs(rounding, *seen.moments(), torch.device("cpu"))


def test_moments_of_a_histogram_are_those_of_its_values() -> None:
    inputs = (0.3 + draw(0, 40, 16)).bfloat16().float()
    found = Histogram.of(inputs).moments()
    torch.testing.assert_close(torch.tensor(found), torch.stack([inputs.mean(), inputs.std(correction=0)]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_start_on_the_grid_that_calibration_found(symmetric: bool) -> None:
    inputs, rounding, grid = of_inputs(symmetric)
    assert torch.equal(grid(inputs), rounding(inputs))
    now = grid.settled()
    assert torch.equal(now.scale, rounding.scale) and torch.equal(now.zero_point, rounding.zero_point)
    # away from there, too, training sees what the settled grid gives
    with torch.no_grad():
        grid.high *= 0.7
        grid.low *= 1.2
        grid(inputs + 0.5)
        grid.settle()
    assert not torch.equal(grid.settled().scale, rounding.scale)
    torch.testing.assert_close(grid(inputs).detach(), grid.settled()(inputs))


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_get_a_gradient_inside_and_ends_where_they_cut(symmetric: bool) -> None:
    inputs, rounding, grid = of_inputs(symmetric)
    inputs, slopes = (3 * inputs).requires_grad_(), draw(1, 40, 16)
    (grid(inputs) * slopes).sum().backward()
    exact = inputs.detach() / rounding.scale
    multiple = exact.round()
    low, high = -4 - rounding.zero_point, 3 - rounding.zero_point
    below, above = multiple < low, multiple > high
    assert bool(below.any()) and bool(above.any())
    torch.testing.assert_close(inputs.grad, torch.where(below | above, 0.0, slopes))
    if symmetric:
        moves = torch.where(below | above, multiple.clamp(-4, 3), multiple - exact) * grid.spread * grid.reach[1] / 3
        torch.testing.assert_close(grid.high.grad, (slopes * moves).sum().view(1), rtol=1e-4, atol=1e-4)
        return
    place = -4 - (grid.centre + grid.spread * grid.reach[0]) / rounding.scale
    rounded = rounding.zero_point - place
    high_moves = torch.where(below, -rounded, torch.where(above, 7 - rounded, multiple - exact)) * grid.spread * grid.reach[1] / 7
    low_moves = torch.where(below, 7 + rounded, torch.where(above, rounded, exact - multiple)) * grid.spread * grid.reach[0] / 7
    torch.testing.assert_close(grid.high.grad, (slopes * high_moves).sum().view(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grid.low.grad, (slopes * low_moves).sum().view(1), rtol=1e-4, atol=1e-4)


def test_statistics_of_inputs_move_once_a_step_and_not_while_reading() -> None:
    inputs, _, grid = of_inputs(symmetric=False)
    first = grid.centre.clone(), grid.spread.clone()
    for _ in range(2):  # a block is passed again for its gradients
        grid(2 * inputs)
    assert torch.equal(grid.centre, first[0]) and torch.equal(grid.spread, first[1])
    with torch.no_grad():
        grid.settle()
        grid.settle()
    wanted = (2 * inputs).mean(), (2 * inputs).std(correction=0)
    for found, before, seen in zip((grid.centre, grid.spread), first, wanted, strict=True):
        torch.testing.assert_close(found, before.lerp(seen.view(1), INPUT_MOMENTUM))
