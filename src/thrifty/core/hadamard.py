"""Rotations by Hadamard matrices: every channel becomes a sum of all others with signs, so that none stands out.

A Hadamard matrix H of order n holds +1 and -1 only and H H^T = n I. Orders 2^k are Sylvester's, H_2n = [[H, H], [H, -H]]; others are
Kronecker products of these with a matrix of Paley's, which exists for q + 1 (q prime, 3 more than a multiple of 4) and 2 (q + 1) (q prime,
1 more than a multiple of 4): 12, 20, 28, 36, 44, ... A width of which no order is known is rotated block by block.
Source: Paley (1933), On orthogonal matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.fast_hadamard import transformed

LARGEST_BASE = 512
"""Orders of Paley's matrices that are made; each is multiplied with as a whole."""

FACTOR = 16
"""A Sylvester matrix is applied as a product of factors of this order. Larger ones take more multiplications, smaller ones more passes."""


@cache
def known_order(width: int) -> int:
    """The largest order of a known Hadamard matrix that divides `width`."""
    return max(_base(odd) * (power // (_base(odd) // odd)) for odd, power in _candidates(width))


def is_known(order: int) -> bool:
    """Whether there is a Hadamard matrix of an order here; of any whole number, in a moment."""
    if order < 1:
        return False
    odd = order // (order & -order)
    return odd <= LARGEST_BASE and known_order(order) == order


def hadamard_matrix(order: int) -> Float[Tensor, "order order"]:
    """+1 and -1, float32, its first row and first column +1. Raises ValueError where no matrix of the order is known."""
    if known_order(order) != order:
        raise ValueError(f"no Hadamard matrix of order {order} is known here")
    return reduce(torch.kron, _factors(order)).clone()


def transform(values: Float[Tensor, "*rows width"], order: int | None = None, transpose: bool = False) -> Float[Tensor, "*rows width"]:
    """values @ H / sqrt(order), or H^T, block by block along the last axis; an orthonormal map.

    order: of the blocks, which must divide the width; the largest known one by default. Sums are taken in float32 at least, and rounded
    once to the type of `values`. Compiled code adds and subtracts them where this machine has it (`core.fast_hadamard`).
    """
    width = values.shape[-1]
    if order is None:
        order = known_order(width)
    elif width % order or known_order(order) != order:
        raise ValueError(f"a width of {width} cannot be rotated in blocks of order {order}")
    found = transformed(values, *_parts(order, transpose))
    return plain_transform(values, order, transpose) if found is None else found


def plain_transform(values: Float[Tensor, "*rows width"], order: int, transpose: bool = False) -> Float[Tensor, "*rows width"]:
    """`transform` in plain torch, on any device and differentiable; order: a known one that divides the width.

    Takes width * (16 log_16 order) multiplications a row, where a product with H takes width * order.
    """
    kind = torch.promote_types(values.dtype, torch.float32)
    factors = [factor.to(values.device, kind) / len(factor) ** 0.5 for factor in _factors(order)]
    out = values.to(kind).contiguous()
    right = 1
    for factor in reversed(factors):
        size, factor = len(factor), factor.T if transpose else factor
        out = out.reshape(-1, size) @ factor if right == 1 else torch.matmul(factor.T, out.reshape(-1, size, right))
        right *= size
    return out.reshape(values.shape).to(values.dtype)


@dataclass(frozen=True)
class Rotation:
    """x -> x Q along the last axis, Q orthonormal: Q = diag(signs) H / sqrt(order), block by block.

    signs: [width] +1 or -1. order: of the blocks. keeps_mean: Q = H diag(signs) H^T / order instead, with the signs of constants +1, so
    that Q maps a row of equal values to itself and the mean of a row stays what it was: what a LayerNorm subtracts.
    """

    signs: Float[Tensor, "width"]
    order: int
    keeps_mean: bool = False

    @classmethod
    def random(cls, width: int, seed: int, *, order: int | None = None, keeps_mean: bool = False) -> Rotation:
        """The rotation with signs drawn by `seed`, in blocks of `order`, by default the largest known one."""
        order = known_order(width) if order is None else order
        drawn = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(seed))
        signs = 2.0 * drawn - 1
        if keeps_mean:
            signs[::order] = 1.0
        return cls(signs, order, keeps_mean)

    def of(self, values: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """values @ Q."""
        signs = self.signs.to(values.device, values.dtype)
        if self.keeps_mean:
            return transform(transform(values, self.order) * signs, self.order, transpose=True)
        return transform(values * signs, self.order)

    def back(self, values: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """values @ Q^T, which undoes `of`."""
        signs = self.signs.to(values.device, values.dtype)
        if self.keeps_mean:
            return self.of(values)  # Q is symmetric
        return transform(values, self.order, transpose=True) * signs

    def both(self, matrix: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
        """Q^T matrix Q: the Gram matrix of x Q, given that of x."""
        return self.of(self.of(matrix.T).T)

    def producer(self, repeat: int, unit_size: int) -> Rotation:
        """The same rotation where the copies of grouped queries are not yet made; see `fold.divide_rows` for `repeat` and `unit_size`.

        Raises ValueError when the copies are rotated in different ways, or together.
        """
        if repeat == 1:
            return self
        copies = self.signs.reshape(-1, repeat, unit_size // repeat)
        if not torch.equal(copies, copies[:, :1].expand_as(copies)) or (unit_size // repeat) % self.order:
            raise ValueError(f"the rotation of a space with repeat {repeat} must be the same for all copies of a producer's channel")
        return Rotation(copies[:, 0].reshape(-1), self.order, self.keeps_mean)


# -- known matrices ------------------------------------------------------------------------------------------------------


def _candidates(width: int) -> list[tuple[int, int]]:
    """(odd divisor, power of two) of the width, for odd divisors of which a multiple by a power of two has a known matrix."""
    odd, power = width, 1
    while odd % 2 == 0:
        odd, power = odd // 2, power * 2
    divisors = [number for number in range(1, odd + 1, 2) if odd % number == 0]
    return [(number, power) for number in divisors if _base(number) and power % (_base(number) // number) == 0]


@cache
def _base(odd: int) -> int:
    """The smallest order odd * 2^k of a matrix of Paley's; 1 for 1, 0 where none of up to LARGEST_BASE is known."""
    if odd == 1:
        return 1
    order = 4 * odd
    while order <= LARGEST_BASE:
        if _paley_prime(order):
            return order
        order *= 2
    return 0


def _paley_prime(order: int) -> int:
    """The prime that Paley's matrix of an order is made from; 0 where there is none."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return order - 1
    half = order // 2 - 1
    return half if _is_prime(half) and half % 4 == 1 else 0


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


@cache
def _factors(order: int) -> tuple[Tensor, ...]:
    """Matrices whose Kronecker product is the Hadamard matrix of an order: Paley's first, then Sylvester's of up to FACTOR."""
    base = _base(next(odd for odd, power in _candidates(order) if odd * power == order))
    rest = order // base
    sizes = []
    while rest >= FACTOR:
        sizes.append(FACTOR)
        rest //= FACTOR
    # what is left comes before them: products whose inner dimension is small are slow along the last axis
    factors = [_paley(base)] * (base > 1) + [_sylvester(rest)] * (rest > 1) + [_sylvester(size) for size in sizes]
    return tuple(factors) or (torch.ones(1, 1),)


@cache
def _parts(order: int, transpose: bool) -> tuple[int, Tensor | None]:
    """(order of Sylvester's factors together, the transpose of the matrix before them; None where there is none)."""
    base = _base(next(odd for odd, power in _candidates(order) if odd * power == order))
    outer = _paley(base) if base > 1 else None
    return order // base, outer if outer is None or transpose else outer.T.contiguous()


def _sylvester(order: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def _paley(order: int) -> Tensor:
    """Paley's matrix, its rows and columns signed so that the first row and the first column are +1."""
    prime = _paley_prime(order)
    squares = {number * number % prime for number in range(1, prime)}
    symbol = torch.tensor([0.0] + [1.0 if number in squares else -1.0 for number in range(1, prime)])
    index = torch.arange(prime)
    core = torch.zeros(prime + 1, prime + 1)  # the conference matrix of the quadratic residues
    core[0, 1:] = 1
    core[1:, 1:] = symbol[(index[:, None] - index[None, :]) % prime]
    if prime % 4 == 3:
        core[1:, 0] = -1
        matrix = torch.eye(prime + 1) + core
    else:
        core[1:, 0] = 1
        plus, minus = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        matrix = torch.kron(core, plus) + torch.kron(torch.eye(prime + 1), minus)
    matrix = matrix * matrix[:, :1]
    return matrix * matrix[:1]
