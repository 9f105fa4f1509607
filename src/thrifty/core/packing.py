"""Codes in 32-bit words, in the layout of compressed-tensors: word w of a row holds entries w * k .. w * k + k - 1, lowest bits first.

k = 32 // bits entries fit a word. Codes are stored with an offset: code + 2^(bits - 1).
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def pack_words(codes: Int[Tensor, "rows n"], bits: int) -> Int[Tensor, "rows words"]:
    """Signed codes as int32 words; the last word of a row is filled up with zeros."""
    per_word = 32 // bits
    rows, length = codes.shape
    stored = torch.zeros(rows, -(-length // per_word) * per_word, dtype=torch.int32, device=codes.device)
    stored[:, :length] = codes.to(torch.int32) + 2 ** (bits - 1)
    words = torch.zeros(rows, stored.shape[1] // per_word, dtype=torch.int32, device=codes.device)
    for place in range(per_word):
        words |= stored[:, place::per_word] << (bits * place)
    return words


def unpack_words(words: Int[Tensor, "rows words"], bits: int, length: int) -> Int[Tensor, "rows n"]:
    """The signed codes, int8, of rows that held `length` entries each."""
    per_word = 32 // bits
    stored = torch.empty(words.shape[0], words.shape[1] * per_word, dtype=torch.int8, device=words.device)
    for place in range(per_word):
        stored[:, place::per_word] = (((words >> (bits * place)) & (2**bits - 1)) - 2 ** (bits - 1)).to(torch.int8)
    return stored[:, :length]
