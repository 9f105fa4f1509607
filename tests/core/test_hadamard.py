"""Hadamard matrices against their definition, the fast transform against the product, and what rotations keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.hadamard import Rotation, hadamard_matrix, known_order, transform

ORDERS = [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 48, 60, 64, 76, 96, 108, 128, 140, 148, 448, 768]
WIDTHS = st.sampled_from([1, 2, 3, 6, 10, 12, 64, 72, 80, 96, 100, 112, 160, 256, 288])


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("order", ORDERS)
def test_a_matrix_is_what_the_name_says(order):
    matrix = hadamard_matrix(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order))
    assert torch.equal(matrix[0], torch.ones(order)) and torch.equal(matrix[:, 0], torch.ones(order))


def test_powers_of_two_are_sylvesters():
    for power in (1, 3, 5, 7):
        smaller = hadamard_matrix(2 ** (power - 1))
        expected = torch.cat([torch.cat([smaller, smaller], 1), torch.cat([smaller, -smaller], 1)])
        assert torch.equal(hadamard_matrix(2**power), expected)


def test_widths_of_models_and_those_that_are_rotated_in_blocks():
    whole = [896, 1536, 2560, 3072, 3584, 4096, 4864, 5120, 13824, 14336, 18944, 28672]
    assert [known_order(width) for width in whole] == whole
    assert {width: known_order(width) for width in (11008, 100, 6, 3, 4304)} == {11008: 256, 100: 20, 6: 2, 3: 1, 4304: 16}
    for order in (3, 6, 92, 172):
        with pytest.raises(ValueError, match=f"order {order}"):
            hadamard_matrix(order)
    with pytest.raises(ValueError, match="width of 96"):
        transform(torch.ones(96), 64)
    with pytest.raises(ValueError, match="order 6"):
        transform(torch.ones(12), 6)


@given(st.integers(0, 10_000), WIDTHS, st.booleans())
def test_the_fast_transform_is_the_product(seed, width, transpose):
    values, order = draw(seed, 2, 3, width), known_order(width)
    matrix = hadamard_matrix(order).double() / order**0.5
    expected = values.reshape(2, 3, -1, order) @ (matrix.T if transpose else matrix)
    torch.testing.assert_close(transform(values, transpose=transpose), expected.reshape(values.shape), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000), WIDTHS, st.booleans())
def test_a_rotation_is_orthonormal_and_is_undone(seed, width, keeps_mean):
    values, rotation = draw(seed, 5, width), Rotation.random(width, seed, keeps_mean=keeps_mean)
    turned = rotation.of(values)
    torch.testing.assert_close(turned.square().sum(-1), values.square().sum(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotation.back(turned), values, rtol=1e-12, atol=1e-12)
    gram = values.T @ values
    torch.testing.assert_close(rotation.both(gram), turned.T @ turned, rtol=1e-10, atol=1e-10)
    if keeps_mean:
        torch.testing.assert_close(turned.mean(-1), values.mean(-1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(rotation.of(torch.ones(width).double()), torch.ones(width).double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keeps_mean", [False, True])
def test_a_channel_that_stands_out_is_spread_over_all(keeps_mean):
    spike = torch.zeros(512)
    spike[100] = 1.0
    turned = Rotation.random(512, 1, keeps_mean=keeps_mean).of(spike)
    # of a plain rotation all entries are alike; one that keeps the mean has sums of random signs
    assert float(turned.abs().max()) <= (5 if keeps_mean else 1.0001) / 512**0.5
    assert not torch.equal(turned, Rotation.random(512, 2, keeps_mean=keeps_mean).of(spike))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_added_up_in_float32(dtype):
    values = draw(1, 4, 4096, dtype=dtype)
    assert torch.equal(transform(values), transform(values.float()).to(dtype))


def test_the_producer_of_repeated_channels_is_rotated_like_each_copy():
    small, repeat, heads = 12, 3, 2
    producer = Rotation.random(heads * small, 4, order=4)
    signs = producer.signs.reshape(heads, 1, small).expand(-1, repeat, -1).reshape(-1)
    consumer = Rotation(signs, 4)
    values = draw(5, 7, heads * small)
    copied = values.reshape(7, heads, 1, small).expand(-1, -1, repeat, -1).reshape(7, -1)
    expected = producer.of(values).reshape(7, heads, 1, small).expand(-1, -1, repeat, -1).reshape(7, -1)
    torch.testing.assert_close(consumer.of(copied), expected, rtol=1e-12, atol=1e-12)
    found = consumer.producer(repeat, repeat * small)
    assert torch.equal(found.signs, producer.signs) and found.order == 4
    with pytest.raises(ValueError, match="all copies"):
        Rotation.random(72, 1, order=4).producer(repeat, repeat * small)
    with pytest.raises(ValueError, match="all copies"):
        Rotation(signs, 8).producer(repeat, repeat * small)
