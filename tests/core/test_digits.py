"""Digits in bytes against arithmetic on whole numbers of any size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.core.digits import MOST_LEVELS, group_of, pack_digits, packed_length, unpack_digits


def by_arithmetic(row: list[int], levels: int) -> bytes:
    """The bytes of a row, worked out with Python's integers."""
    bits = (levels - 1).bit_length()
    digits, size = group_of(levels)
    base = 2**bits if digits * bits == 8 * size else levels
    made = b""
    for start in range(0, len(row), digits):
        part = row[start : start + digits]
        value = sum(code * base**place for place, code in enumerate(part))
        made += value.to_bytes(size if len(part) == digits else -(-(base ** len(part) - 1).bit_length() // 8), "little")
    return made


def drawn(seed: int, rows: int, count: int, levels: int) -> Tensor:
    return torch.randint(0, levels, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


LEVELS = st.one_of(st.integers(2, 300), st.integers(2, MOST_LEVELS), st.sampled_from([1 << bits for bits in range(1, 17)]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 70), LEVELS)
def test_bytes_are_those_of_whole_number_arithmetic_and_read_back(seed: int, rows: int, count: int, levels: int) -> None:
    codes = drawn(seed, rows, count, levels)
    packed = pack_digits(codes, levels)
    assert packed.shape == (rows, packed_length(count, levels)) and packed.dtype == torch.uint8
    assert [bytes(row.tolist()) for row in packed] == [by_arithmetic(row, levels) for row in codes.tolist()]
    found = unpack_digits(packed, levels, count)
    assert torch.equal(found.to(torch.int32), codes) and found.dtype == (torch.uint8 if levels <= 256 else torch.int32)


def test_bits_follow_each_other_without_gaps() -> None:
    for bits in range(1, 17):
        codes = drawn(bits, 1, 40, 1 << bits)
        whole = sum(code << (bits * place) for place, code in enumerate(codes[0].tolist()))
        assert bytes(pack_digits(codes, 1 << bits)[0].tolist()) == whole.to_bytes(5 * bits, "little")


@pytest.mark.parametrize(
    ("levels", "group"), [(3, (5, 1)), (5, (24, 7)), (2, (8, 1)), (8, (8, 3)), (256, (1, 1)), (512, (8, 9)), (4096, (2, 3))]
)
def test_groups(levels: int, group: tuple[int, int]) -> None:
    assert group_of(levels) == group


def test_rates_are_the_least_of_all_groups() -> None:
    for levels in range(2, 400):
        count, bits = 5 * 7 * 8 * 24 * 11 * 13, (levels - 1).bit_length()
        fits = [max(digits for digits in range(60) if levels**digits <= 256**size) for size in range(1, 8)]
        least = min(bits, *(8 * size / digits for size, digits in enumerate(fits, 1) if digits))
        taken = 8 * packed_length(count, levels) / count
        assert math.log2(levels) <= taken + 1e-9 and taken == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize(("levels", "packed"), [(3, [255]), (3, [243]), (5, [255] * 7), (200, [200]), (1000, [255, 255, 255, 255, 255])])
def test_codes_out_of_range_are_refused(levels: int, packed: list[int]) -> None:
    count = {3: 5, 5: 24, 200: 1, 1000: 4}[levels]
    with pytest.raises(ValueError, match=f"not below {levels}"):
        unpack_digits(torch.tensor([packed], dtype=torch.uint8), levels, count)


def test_large_matrices_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = drawn(0, 37, 50, 3)
    whole = pack_digits(codes, 3)
    monkeypatch.setattr("thrifty.core.digits.CHUNK", 120)
    assert torch.equal(pack_digits(codes, 3), whole) and torch.equal(unpack_digits(whole, 3, 50).to(torch.int32), codes)


@pytest.mark.parametrize(("rows", "count", "levels"), [(0, 5, 4), (3, 0, 4), (3, 7, 1)])
def test_nothing_takes_no_bytes(rows: int, count: int, levels: int) -> None:
    codes = torch.zeros(rows, count, dtype=torch.int32)
    packed = pack_digits(codes, levels)
    assert packed.numel() == 0
    assert torch.equal(unpack_digits(packed, levels, count).to(torch.int32), codes)
