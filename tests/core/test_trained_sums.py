"""Sums of codewords that are trained: where they start, what gradients are, and what codes do when they move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.codebooks.additive import sum_codewords
from thrifty.core.trained_sums import TRUST, SumsWeight
from thrifty.weights.target.additive import Additive


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def start(seed: int = 0, rows: int = 12, width: int = 32, target: Additive | None = None) -> Encoded:
    target = target or Additive(2, 4, 4)
    points = target.fit(draw(seed, rows, width))
    return points.encode(points.project(draw(seed + 1, rows, width)))


@pytest.mark.parametrize("target", [Additive(2, 4, 4), Additive(1, 9, 2), Additive(4, 3, 8)], ids=repr)
@pytest.mark.parametrize("moves", [0.0, 0.1])
def test_training_starts_at_the_sums_that_were_found(target: Additive, moves: float) -> None:
    found = start(0, 12, 32, target)
    trained = SumsWeight(found, moves)
    assert torch.equal(trained.values(), found.decode())
    for name, tensor in trained.encoded().tensors.items():
        assert torch.equal(tensor.to(torch.float64), found.tensors[name].to(torch.float64)) and tensor.dtype == found.tensors[name].dtype


def test_gradients_are_finite_differences() -> None:
    """The matrix is linear in codebooks and in scales, but for the rounding to 16 bits, which a step of its size does not see."""
    trained = SumsWeight(start(2), 0.1)
    slopes = draw(3, 12, 32).double()
    (trained.values() * slopes).sum().backward()
    codes = trained.codes

    def loss(change: Tensor, stretch: Tensor) -> Tensor:
        codebooks = trained.codebooks.double() + change * trained.spread.double()
        return ((sum_codewords(codebooks, codes).flatten(1) * trained.scale.double() * stretch) * slopes).sum()

    at = [trained.change.detach().double().requires_grad_(), trained.stretch.detach().double().requires_grad_()]
    assert torch.autograd.gradcheck(loss, at, eps=1e-6)
    for found, expected in zip((trained.change, trained.stretch), torch.autograd.grad(loss(*at), at), strict=True):
        torch.testing.assert_close(found.grad.double(), expected, rtol=1e-4, atol=1e-4)
    # the dense copy: that of the matrix itself, in the unit of its row
    torch.testing.assert_close(trained.offset.grad, slopes.float() * trained.row)


@given(seed=st.integers(0, 1000))
def test_wherever_it_goes_sixteen_bits_hold_it(seed: int) -> None:
    trained = SumsWeight(start(seed), 0.2)
    with torch.no_grad():
        for tensor in trained.parameters.values():
            tensor += 0.3 * draw(seed + 2, *tensor.shape)
        trained.settle()
    encoded = trained.encoded()
    assert torch.equal(encoded.decode(), trained.values())
    assert torch.equal(encoded.tensors["codebooks"], encoded.tensors["codebooks"].half().float())
    assert torch.equal(encoded.tensors["scale"], encoded.tensors["scale"].bfloat16().float())
    assert int(encoded.tensors["codes"].max()) < 16


@given(seed=st.integers(0, 1000))
def test_codes_move_towards_the_dense_copy_and_not_far(seed: int) -> None:
    trained = SumsWeight(start(seed, 40, 64), 0.05)
    with torch.no_grad():
        trained.offset += draw(seed + 2, *trained.offset.shape)
        before, codes = trained.values(), trained.codes.clone()
        wanted = trained.dense + trained.offset * trained.row
        moved = trained.settle()["offset"]
        after = trained.values()
    changed = (trained.codes != codes).any(2)
    assert torch.equal(moved, changed.repeat_interleave(4, 1))
    assert 0 < int(changed.sum()) <= round(0.05 * changed.numel())
    assert torch.equal(after[~moved], before[~moved])
    errors = [(wanted - values).square().view(40, -1, 4).sum(2) for values in (before, after)]
    assert bool((errors[1][changed] < errors[0][changed]).all())
    # all but the last of them within the bound
    steps = (after - before).square().view(40, -1, 4).sum(2)
    assert float(steps.sum() - steps[changed].max()) <= TRUST**2 * float(before.square().sum()) + 1e-5


def test_every_group_is_looked_at_before_any_comes_again() -> None:
    """Where nothing grows, those that have no nearer codes do not stand in the way of the others."""
    trained = SumsWeight(start(8, 20, 40), 0.25)
    with torch.no_grad():
        trained.offset += 0.5 * draw(9, *trained.offset.shape)
        wanted = (trained.dense + trained.offset * trained.row).view(20, 10, 4)
        for _ in range(400):  # a few groups each, within the bound of a step
            trained.settle()
        left = (wanted - trained.values().view(20, 10, 4)).norm(dim=2)
    torch.testing.assert_close(trained.looked, left, rtol=1e-4, atol=1e-5)


def test_codes_that_are_nearest_already_stay() -> None:
    trained = SumsWeight(start(4), 1.0)
    codes = trained.codes.clone()
    with torch.no_grad():
        moved = trained.settle()["offset"]
    assert torch.equal(trained.codes, codes) and not bool(moved.any())


def test_codebooks_alone_are_fitted_to_a_quadratic() -> None:
    """By its own gradients to what least squares finds with the same codes and scales."""
    weight, trained = draw(6, 12, 32), SumsWeight(start(5))
    rows, groups, books = trained.codes.shape
    places = torch.zeros(rows * groups, books * 16)
    for number in range(books):
        places[torch.arange(rows * groups), 16 * number + trained.codes[..., number].flatten()] += 1
    scaled = places * trained.scale.expand(-1, groups).reshape(-1, 1)
    best = scaled @ torch.linalg.lstsq(scaled.double(), weight.view(-1, 4).double(), driver="gelsd").solution.float()
    least = float((weight.view(-1, 4) - best).square().sum())
    optimizer = torch.optim.Adam([trained.change], lr=0.02)
    first = float((weight - trained.values()).square().sum())
    for _ in range(300):
        optimizer.zero_grad()
        (weight - trained.values()).square().sum().backward()
        optimizer.step()
    last = float((weight - trained.values()).square().sum())
    assert last == pytest.approx(least, rel=0.01) and last < 0.9 * first
