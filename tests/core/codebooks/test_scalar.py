"""Quantizers without a codebook: every index and code, the published rounding written down plainly, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.codebooks.vectors import gaussian
from thrifty.base.errors import InputError
from thrifty.core.codebooks.scalar import Binary, FiniteScalar

PUBLISHED = (8, 8, 8, 6, 5)


def rounded(value: float, levels: int) -> int:
    """q of one value, by the formula."""
    half, offset = (levels - 1) * (1 - 1e-3) / 2, 0.5 if levels % 2 == 0 else 0.0
    return round(math.tanh(value + math.tan(offset / half)) * half - offset)


def test_every_index_is_one_code_and_back():
    quantizer = FiniteScalar(PUBLISHED)
    assert quantizer.sizes == (15360,)
    indices = torch.arange(15360)[:, None]
    digits = quantizer.digits(indices)
    assert len(digits.unique(dim=0)) == 15360
    assert torch.equal(quantizer.indices(digits), indices)
    basis = (1, 8, 64, 512, 3072)
    expected = sum((digits[:, place] + PUBLISHED[place] // 2) * basis[place] for place in range(5))
    assert torch.equal(expected, indices[:, 0])
    for place, levels in enumerate(PUBLISHED):
        assert digits[:, place].unique().tolist() == list(range(-(levels // 2), (levels + 1) // 2))


@pytest.mark.parametrize("levels", range(2, 9))
def test_each_value_reaches_exactly_its_levels_in_order(levels):
    quantizer = FiniteScalar((levels,))
    values = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    found = quantizer.digits(quantizer.encode(values))[:, 0]
    assert found.unique().tolist() == list(range(-(levels // 2), (levels + 1) // 2))
    assert bool((found.diff() >= 0).all())
    assert found[::997].tolist() == [rounded(value, levels) for value in values[::997, 0].tolist()]
    bounded = quantizer.bound(values)[:, 0]
    assert float((bounded - found).abs().max()) <= 0.5


@pytest.mark.parametrize("levels", [PUBLISHED, (2, 3, 4, 5), (7, 7), (2,)])
def test_numbers_are_encoded_as_the_code_that_they_stand_for(levels):
    quantizer = FiniteScalar(levels)
    indices = torch.arange(math.prod(levels))[:, None]
    codes = quantizer.decode(indices)
    assert torch.equal(quantizer.encode(quantizer.preimage(codes)), indices)
    assert float(codes.abs().max()) <= 1
    for width, column in zip(levels, codes.unbind(1), strict=True):
        assert torch.equal(column * (width // 2), (column * (width // 2)).round())


@given(st.integers(0, 10_000), st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_training_sees_the_decoded_code_and_the_gradient_of_the_bound(seed, levels):
    quantizer = FiniteScalar(tuple(levels))
    vectors = gaussian(seed, 20, len(levels)).requires_grad_()
    found = quantizer.forward(vectors)
    decoded = quantizer.decode(quantizer.encode(vectors.detach()))
    torch.testing.assert_close(found.detach(), decoded.double(), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), vectors)
    halves = torch.tensor([width // 2 for width in levels])
    (expected,) = torch.autograd.grad((quantizer.bound(vectors) / halves).sum(), vectors)
    torch.testing.assert_close(slope, expected)


def test_levels_that_hold_nothing_are_refused():
    for levels in ((), (1, 4), (2,) * 64):
        with pytest.raises(InputError, match="levels must be two or more"):
            FiniteScalar(levels)


def test_signs_are_all_indices_and_back():
    for magnitude in (1.0, 10**-0.5):
        quantizer = Binary(10, magnitude)
        indices = torch.arange(1024)[:, None]
        vectors = quantizer.decode(indices)
        assert torch.equal(quantizer.encode(vectors), indices)
        assert len(vectors.unique(dim=0)) == 1024 and vectors.abs().unique().numel() == 1
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1024))
    values = gaussian(1, 30, 10)
    assert torch.equal(Binary(10).decode(Binary(10).encode(values)), values.sign().float())
    assert int(Binary(10).encode(torch.tensor([[1.0, -1, 1] + [-1.0] * 7]))) == 0b101
    assert Binary(10).bits == 10


def test_signs_pass_the_gradient_on():
    values = gaussian(2, 5, 4).requires_grad_()
    (slope,) = torch.autograd.grad(Binary(4).forward(values).sum(), values)
    assert torch.equal(slope, torch.ones_like(slope))
    with pytest.raises(InputError, match="dimension must be 1 to 62"):
        Binary(63)
