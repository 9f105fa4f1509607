"""Packing: inverse for every width and length, and equal to what compressed-tensors itself writes and reads."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.packing import pack_words, unpack_words


def codes_of(seed: int, rows: int, length: int, bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, length), generator=generator).to(torch.int8)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 70), st.integers(2, 8))
def test_unpacking_is_the_inverse_of_packing(seed, rows, length, bits):
    codes = codes_of(seed, rows, length, bits)
    words = pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-length // (32 // bits)))
    found = unpack_words(words, bits, length)
    assert found.dtype == torch.int8
    assert torch.equal(found, codes)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 70), st.sampled_from([4, 8]))
def test_words_are_those_of_compressed_tensors(seed, rows, length, bits):
    codes = codes_of(seed, rows, length, bits)
    words = pack_words(codes, bits)
    assert torch.equal(words, pack_to_int32(codes, bits))
    assert torch.equal(unpack_from_int32(words, bits, codes.shape), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_code_in_every_place(bits):
    per_word, count = 32 // bits, 2**bits
    codes = torch.zeros(count * per_word, per_word, dtype=torch.int8)
    values = torch.arange(count) - count // 2
    for place in range(per_word):
        codes[place * count : (place + 1) * count, place] = values.to(torch.int8)
    words = pack_words(codes, bits)
    offset = sum((count // 2) << (bits * place) for place in range(per_word))
    expected = [offset + int(value) * 2 ** (bits * place) for place in range(per_word) for value in values]
    assert [int(word) % 2**32 for word in words[:, 0]] == expected
    assert torch.equal(unpack_words(words, bits, per_word), codes)


def test_the_first_entry_lies_in_the_lowest_bits_and_the_rest_of_a_word_is_zero():
    assert pack_words(torch.tensor([[-8, -7, 7]], dtype=torch.int8), 4).tolist() == [[0xF10]]
