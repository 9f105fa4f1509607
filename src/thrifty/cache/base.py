"""The verbs of packed caches: how keys and values of past tokens are stored in fewer bits, and how many of the newest stay as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.method import Method


@dataclass(frozen=True)
class Packed:
    """Keys or values of tokens that follow each other, as a method stores them.

    tensors: each [batch, kv_heads, pieces, ...], pieces in the order of the tokens. step: tokens of a piece. So rows of a batch and whole
    pieces can be taken, and pieces joined, without a look inside.
    """

    tensors: Mapping[str, Tensor]
    step: int

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self.step * next(iter(self.tensors.values())).shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Packed:
        """The same with every tensor changed."""
        return Packed({name: change(tensor) for name, tensor in self.tensors.items()}, self.step)

    def joined(self, later: Packed) -> Packed:
        """These tokens, then the later ones."""
        return Packed({name: torch.cat([tensor, later.tensors[name]], dim=2) for name, tensor in self.tensors.items()}, self.step)

    def between(self, first: int, last: int) -> Packed:
        """The pieces from token `first` on and before token `last`, both multiples of `step`; a copy, so that the rest can be freed."""
        return self.map(lambda tensor: tensor[:, :, first // self.step : last // self.step].clone())


class PackedCache(Method, ABC):
    """Past keys and values in fewer bits; the newest tokens stay as they are.

    Keys are [batch, kv_heads, length, head_dim], as attention reads them (after rotary positions), values likewise with a head_dim that
    may be another. `load` gives what `store` was given, up to what the bits lose, in the same type and on the same device.
    """

    family: ClassVar[str] = "cache"

    @abstractmethod
    def check(self, key_dim: int, value_dim: int) -> None:
        """Raise InputError when heads of these sizes cannot be packed, and say with which settings they can."""

    @abstractmethod
    def plain(self, length: int) -> tuple[int, int]:
        """(keys, values): how many of the newest tokens stay plain when `length` are known; what is before them is packed.

        What is packed never shrinks as the length grows, and is a multiple of the step of `store_keys` or `store_values`.
        """

    @abstractmethod
    def store_keys(self, keys: Float[Tensor, "batch kv_heads length key_dim"]) -> Packed:
        """Keys of some whole pieces."""

    @abstractmethod
    def store_values(self, values: Float[Tensor, "batch kv_heads length value_dim"]) -> Packed:
        """Values of some whole pieces."""

    @abstractmethod
    def load_keys(self, packed: Packed) -> Float[Tensor, "batch kv_heads length key_dim"]:
        """The keys that are read in place of those that were stored."""

    @abstractmethod
    def load_values(self, packed: Packed) -> Float[Tensor, "batch kv_heads length value_dim"]:
        """The values that are read in place of those that were stored."""
