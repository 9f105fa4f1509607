"""Quantizers without a codebook: every value of a vector is rounded to a few levels, and all of them together are one index.

Finite scalar quantization (FSQ; Mentzer, Minnen, Agustsson and Tschannen 2023, arXiv 2309.15505), L_i levels for value i:

    bound(z)_i = tanh(z_i + shift_i) h_i - o_i,   h = (L - 1)(1 - 1e-3) / 2,   o = 1/2 for even L, else 0,   shift = tan(o / h)
    q = round(bound(z)) in -floor(L/2) .. ceil(L/2) - 1,      index = sum_i (q_i + floor(L_i/2)) prod_{j<i} L_j

The number that a code stands for is q_i / floor(L_i/2). Lookup-free and binary spherical quantization keep the sign of every value: index =
sum_i [z_i > 0] 2^i, and the vector is that of the signs, times 1 (LFQ; Yu et al. 2023, arXiv 2310.05737) or d^(-1/2) (BSQ; Zhao, Xiong and
Krähenbühl 2024, arXiv 2406.07548).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.core.codebooks.learning import straight_through
from thrifty.core.codebooks.quantizer import Quantizer

MARGIN = 1e-3
"""Share of the range that tanh does not reach, so that its ends are rounded like every other value."""


@dataclass(frozen=True)
class FiniteScalar(Quantizer):
    """levels: how many each value of a vector has, 2 or more."""

    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) >= 2**63:
            raise InputError(f"levels must be two or more for each value, and their product below 2^63; got {self.levels}")

    @property
    def sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)

    def encode(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, "n one"]:
        return self.indices(torch.round(self.bound(vectors)))

    def decode(self, indices: Int[Tensor, "n one"]) -> Float[Tensor, "n d"]:
        return self.digits(indices).to(torch.float32) / self._half(indices.device)

    def forward(self, vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """What `decode` gives for what `encode` gives, with the gradient of `bound` in place of that of rounding, which has none."""
        bounded = self.bound(vectors)
        return straight_through(bounded, torch.round(bounded)) / self._half(vectors.device)

    def bound(self, vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Every value inside the range of its levels."""
        half, offset, shift = (part.to(vectors) for part in self._range())
        return torch.tanh(vectors + shift) * half - offset

    def preimage(self, codes: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Vectors that are encoded as the numbers `codes`, as `decode` gives them."""
        half, offset, shift = (part.to(codes) for part in self._range())
        reached = (codes * self._half(codes.device) + offset) / half
        return torch.atanh(reached.clamp(MARGIN - 1, 1 - MARGIN)) - shift

    def indices(self, digits: Float[Tensor, "n d"]) -> Int[Tensor, "n one"]:
        """The index of integers q, each in the range of its levels."""
        return ((digits.long() + self._half(digits.device)) * self._basis(digits.device)).sum(1, keepdim=True)

    def digits(self, indices: Int[Tensor, "n one"]) -> Int[Tensor, "n d"]:
        """The integers q of an index."""
        levels = torch.tensor(self.levels, device=indices.device)
        return indices // self._basis(indices.device) % levels - self._half(indices.device)

    def _range(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"], Float[Tensor, "d"]]:
        """h, o and shift."""
        levels = torch.tensor(self.levels, dtype=torch.float64)
        half, offset = (levels - 1) * (1 - MARGIN) / 2, (levels % 2 == 0) / 2
        return half, offset, torch.tan(offset / half)

    def _half(self, device: torch.device) -> Int[Tensor, "d"]:
        return torch.tensor(self.levels, device=device) // 2

    def _basis(self, device: torch.device) -> Int[Tensor, "d"]:
        return torch.tensor([math.prod(self.levels[:place]) for place in range(len(self.levels))], device=device)


@dataclass(frozen=True)
class Binary(Quantizer):
    """dimension: values of a vector, up to 62. magnitude: what a sign is multiplied by; 1 is LFQ, dimension ** -0.5 is BSQ."""

    dimension: int
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.dimension <= 62:
            raise InputError(f"dimension must be 1 to 62, for an index of 64 bits; got {self.dimension}")

    @property
    def sizes(self) -> tuple[int, ...]:
        return (2**self.dimension,)

    def encode(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, "n one"]:
        return ((vectors > 0).long() << torch.arange(self.dimension, device=vectors.device)).sum(1, keepdim=True)

    def decode(self, indices: Int[Tensor, "n one"]) -> Float[Tensor, "n d"]:
        signs = indices >> torch.arange(self.dimension, device=indices.device) & 1
        return (2 * signs - 1).to(torch.float32) * self.magnitude

    def forward(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """What `decode` gives for what `encode` gives, and the gradient as if nothing had been done."""
        return straight_through(vectors, self.decode(self.encode(vectors)).to(vectors.dtype))
