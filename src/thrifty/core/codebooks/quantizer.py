"""What every quantizer of vectors does, and what is said of the codes it gives.

A vector becomes one or several indices, each into a list of known size; the indices become a vector again. Of indices it is asked how much
of each list they use, how many bits they hold (entropy, -sum p log2 p), and how many bits a second they take.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Quantizer(ABC):
    """Vectors to indices and back."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """What each index of a vector counts up to."""

    @abstractmethod
    def encode(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, "n q"]:
        """The indices of each vector, int64; index number i is below sizes[i]."""

    @abstractmethod
    def decode(self, indices: Int[Tensor, "n q"]) -> Float[Tensor, "n d"]:
        """The vector that the indices stand for."""

    @property
    def bits(self) -> float:
        """Bits of a vector when every index takes as many as its size needs, fractions of bits included."""
        return sum(math.log2(size) for size in self.sizes)

    def usage(self, indices: Int[Tensor, "n q"]) -> Float[Tensor, "q"]:
        """The share of each list that the indices use. Few vectors use little of a long list: take 50 an entry at least."""
        return torch.stack([(part > 0).double().mean() for part in self._counts(indices)])

    def entropy(self, indices: Int[Tensor, "n q"]) -> Float[Tensor, "q"]:
        """Bits that each index holds on average, if coded by how often it occurs on its own; log2(size) at most."""
        shares = [part.double() / part.sum().clamp_min(1) for part in self._counts(indices)]
        return torch.stack([-torch.special.xlogy(share, share).sum() / math.log(2) for share in shares]).clamp_min(0)

    def perplexity(self, indices: Int[Tensor, "n q"]) -> Float[Tensor, "q"]:
        """2^entropy: of how many equally frequent entries the index could be."""
        return torch.exp2(self.entropy(indices))

    def bitrate(self, vectors_per_second: float) -> float:
        """Bits a second of codes of fixed width."""
        return vectors_per_second * self.bits

    def entropy_bitrate(self, vectors_per_second: float, indices: Int[Tensor, "n q"]) -> float:
        """Bits a second when each index is coded by how often it occurs in `indices`."""
        return vectors_per_second * float(self.entropy(indices).sum())

    def _counts(self, indices: Int[Tensor, "n q"]) -> list[Int[Tensor, "size"]]:
        return [torch.bincount(column, minlength=size) for column, size in zip(indices.unbind(1), self.sizes, strict=True)]
