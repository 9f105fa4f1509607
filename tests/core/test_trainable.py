"""A matrix that is trained on its grid: where it starts, where it may go, and which way gradients point."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.trainable import LEAST, Codes, FreeVector, FreeWeight, GridWeight, LowRankWeight
from thrifty.weights.target.int import Int
from thrifty.weights.target.ternary import Ternary
from thrifty.weights.target.zero_free import ZeroFree

TARGETS = [
    Int(2, 8),
    Int(3, 0, symmetric=False),
    Int(4, 8, symmetric=False),
    Int(levels=5, group_size=8),
    Ternary(8),
    Ternary(0),
    ZeroFree(2, 8),
    ZeroFree(1, 0),
]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_training_starts_at_the_codes_that_were_found(target) -> None:
    weight = draw(0, 6, 24)
    start = target.fit(weight).encode(target.fit(weight).project(draw(1, 6, 24)))  # codes that rounding the weight would not give
    grid = GridWeight(weight, start, target.codes)
    assert torch.equal(grid.values(), start.decode())
    assert torch.equal(grid.encoded().decode(), start.decode())
    # as near to the weight as the cell of the code allows
    latent = grid.weight / grid.scale + grid.offset
    codes = start.tensors["codes"].float().reshape(latent.shape) - grid.zero_point
    assert float((latent - codes).abs().max()) <= 0.5 * target.codes.stride
    inside = (grid.weight / grid.scale - codes).abs() < 0.49 * target.codes.stride
    assert bool((grid.offset[inside] == 0).all())


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@given(seed=st.integers(0, 1000))
def test_wherever_it_goes_it_is_on_the_grid(target, seed: int) -> None:
    weight = draw(seed, 4, 16)
    grid = GridWeight(weight, target.fit(weight).encode(target.fit(weight).project(weight)), target.codes)
    with torch.no_grad():
        grid.offset += 3 * draw(seed + 1, *grid.offset.shape)
        grid.stretch *= torch.exp(0.3 * draw(seed + 2, *grid.stretch.shape))
    encoded = grid.encoded()
    assert torch.equal(encoded.decode(), grid.values())
    allowed = set(range(target.codes.low, target.codes.high + 1, target.codes.stride))
    assert set(encoded.tensors["codes"].flatten().tolist()) <= allowed


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=20), st.sampled_from([(-3, 3, 2), (-2, 1, 1), (-1, 1, 1), (-7, 7, 2)]))
def test_the_nearest_code_is_the_nearest(multiples: list[float], kind: tuple[int, int, int]) -> None:
    codes = Codes(*kind, 8)
    every = torch.arange(kind[0], kind[1] + 1, kind[2]).float()
    values = torch.tensor(multiples)
    found = codes.nearest(values)
    assert bool(torch.isin(found, every).all())
    torch.testing.assert_close((found - values).abs(), (every[:, None] - values).abs().amin(0), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_learned_step_sizes() -> None:
    """Offsets: the slope of the value where it is not cut, else none. Scales: code - multiple inside, the code outside."""
    weight = torch.tensor([[0.2, -0.9, 1.3, -2.6, 4.0, 0.0]])
    target = Int(2, 0)
    start = target.fit(weight).encode(target.fit(weight).project(weight))
    start.tensors["scale"] = torch.tensor([[1.0]])
    start.tensors["codes"] = torch.tensor([[0, -1, 1, -2, 1, 0]], dtype=torch.int8)
    grid = GridWeight(weight, start, target.codes)
    with torch.no_grad():
        grid.offset.zero_()
    slopes = torch.arange(1.0, 7.0)
    (grid.values() * slopes).sum().backward()
    inside = torch.tensor([True, True, True, False, False, True])  # -2.6 rounds to -3 and 4.0 to 4, both beyond the last code
    assert torch.equal(grid.offset.grad[0, 0], torch.where(inside, slopes, 0.0))
    codes = torch.tensor([0.0, -1.0, 1.0, -2.0, 1.0, 0.0])
    expected = (slopes * torch.where(inside, codes - weight[0], codes)).sum()
    torch.testing.assert_close(grid.stretch.grad.flatten()[0], expected)


def test_zero_free_levels_of_a_quarter_are_reproduced() -> None:
    """a * {-3/4, -1/4, 1/4, 3/4} comes out as it was, for scales that a container holds."""
    weight = 0.5 * torch.tensor([[0.75, -0.25, 0.25, -0.75, 0.75, 0.25]])
    target = ZeroFree(2, 0)
    start = target.fit(weight).encode(target.fit(weight).project(weight))
    assert torch.equal(GridWeight(weight, start, target.codes).values(), weight)


@pytest.mark.parametrize("rank", [0, 3])
@given(seed=st.integers(0, 1000))
def test_free_values_start_where_they_were_and_zeros_stay(rank: int, seed: int) -> None:
    start = draw(seed, 5, 12) * (draw(seed + 1, 5, 12) > 0)
    trained = LowRankWeight(start, rank, seed) if rank else FreeWeight(start)
    assert torch.equal(trained.values(), start)
    slopes = torch.autograd.grad(trained.values().square().sum(), list(trained.parameters.values()), allow_unused=True)
    assert all(slope is not None for slope in slopes)
    with torch.no_grad():
        for tensor in trained.parameters.values():
            tensor += draw(seed + 2, *tensor.shape)
    moved = trained.values().detach()
    assert bool((moved[start == 0] == 0).all())
    assert torch.equal(trained.encoded().decode(), moved)
    if rank:  # as a whole the change has that rank, in parts of what rows are large as
        spread = start.square().mean(1, keepdim=True).sqrt()
        change = spread * (trained.up @ trained.down).detach()
        torch.testing.assert_close(moved, (start + change) * (start != 0))
        assert int(torch.linalg.matrix_rank(change.double(), rtol=1e-5)) <= rank


def test_one_rate_moves_free_values_as_far_whatever_their_rank() -> None:
    """The first step of Adam moves every parameter by the rate: the values by the rate times the spread of their row, about."""
    start = draw(0, 64, 96)
    spread = start.square().mean(1, keepdim=True).sqrt()
    moves = {}
    for rank in (0, 4, 16):
        trained = LowRankWeight(start, rank, 0) if rank else FreeWeight(start)
        name = "up" if rank else "offset"
        with torch.no_grad():
            trained.parameters[name] += 0.01 * draw(1, *trained.parameters[name].shape).sign()
        moves[rank] = float(((trained.values() - start) / spread).detach().square().mean().sqrt())
    assert moves[0] == pytest.approx(0.01, rel=1e-4)
    assert moves[4] == pytest.approx(0.01, rel=0.2) and moves[16] == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("start", [torch.tensor([3.0, -4.0]), torch.zeros(2)])
def test_a_vector_moves_in_parts_of_what_it_is_large_as(start: torch.Tensor) -> None:
    trained = FreeVector(start)
    assert torch.equal(trained.values(), start)
    with torch.no_grad():
        trained.offset += torch.tensor([0.5, -1.0])
    size = 12.5**0.5 if bool(start.any()) else LEAST
    torch.testing.assert_close(trained.values(), start + size * torch.tensor([0.5, -1.0]))
    (slope,) = torch.autograd.grad(trained.values().sum(), trained.offset)
    torch.testing.assert_close(slope, torch.full((2,), size))
