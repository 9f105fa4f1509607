"""KIVI: past keys in few bits channel by channel, past values token by token; the newest tokens stay as they are.

    minimum = min of a group    scale = (max - min) / (2^bits - 1)    code = round((x - minimum) / scale)    x' = minimum + code scale

Some channels of keys are large in every token, so a group of keys is one channel of `group_size` tokens, and no channel spoils the grid of
another. Values have no such channels; a group of values is `group_size` channels of one token. Keys beyond the last multiple of
`residual_length` tokens stay plain and are packed `residual_length` at a time; the last `residual_length` values stay plain. Attention runs
over both parts under one softmax.

Source: Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen and Hu (2024), KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache,
arXiv 2402.02750.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.cache.base import Packed, PackedCache
from thrifty.core.digits import pack_digits, unpack_digits
from thrifty.core.spans import from_span, to_span


@dataclass(frozen=True)
class KIVI(PackedCache):
    """bits: of a code. group_size: numbers that share a minimum and a scale, both held in the model's type. residual_length: tokens, a
    multiple of it. keys: whether the groups of keys are of one channel (the paper's), or of one token like those of values."""

    name: ClassVar[str] = "kivi"
    paper: ClassVar[Paper | None] = Paper(
        "Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu",
        2024,
        "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
        "2402.02750",
    )

    bits: Annotated[int, Field(ge=2, le=8)] = 2
    group_size: Annotated[int, Field(ge=2, le=65536)] = 32
    residual_length: Annotated[int, Field(ge=2, le=1_000_000)] = 128
    keys: Literal["channel", "token"] = "channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual_length % self.group_size:
            near = -(-self.residual_length // self.group_size) * self.group_size
            raise InputError(
                f"kivi: residual_length {self.residual_length} is no multiple of group_size {self.group_size}; {near} is, "
                "so that keys fill whole groups when they are packed"
            )

    @classmethod
    def examples(cls) -> tuple[KIVI, ...]:
        return (cls(), cls(bits=4, group_size=16, residual_length=32), cls(keys="token"))

    def check(self, key_dim: int, value_dim: int) -> None:
        grouped = {"values": value_dim} | ({"keys": key_dim} if self.keys == "token" else {})
        for what, size in grouped.items():
            if size % self.group_size:
                common = math.gcd(*grouped.values())
                fitting = math.gcd(self.residual_length, common)
                multiple = -(-self.residual_length // common) * common
                advice = f"{fitting} does" if fitting > 1 else f"{common} does, with residual_length {multiple}"
                raise InputError(f"kivi: group_size {self.group_size} does not divide the head size {size} of the {what}; {advice}")

    def plain(self, length: int) -> tuple[int, int]:
        return length % self.residual_length, min(length, self.residual_length)

    def store_keys(self, keys: Float[Tensor, "batch kv_heads length key_dim"]) -> Packed:
        return self._by_token(keys) if self.keys == "token" else self._packed(keys.unflatten(2, (-1, self.group_size)), -2)

    def store_values(self, values: Float[Tensor, "batch kv_heads length value_dim"]) -> Packed:
        return self._by_token(values)

    def load_keys(self, packed: Packed) -> Float[Tensor, "batch kv_heads length key_dim"]:
        return self._read_by_token(packed) if self.keys == "token" else self._read(packed, -2).flatten(2, 3)

    def load_values(self, packed: Packed) -> Float[Tensor, "batch kv_heads length value_dim"]:
        return self._read_by_token(packed)

    def _by_token(self, states: Float[Tensor, "batch kv_heads length head_dim"]) -> Packed:
        return self._packed(states.unflatten(3, (-1, self.group_size)), -1)

    def _read_by_token(self, packed: Packed) -> Float[Tensor, "batch kv_heads length head_dim"]:
        return self._read(packed, -1).flatten(3, 4)

    def _packed(self, pieces: Float[Tensor, "batch kv_heads pieces rows columns"], dim: int) -> Packed:
        """Pieces as codes, scales and minima; a grid spans rows (-2) or columns (-1).

        A piece of keys is `group_size` tokens by channels; one of values is one token, groups by channels of a group.
        """
        codes, scale, minimum = to_span(pieces, 2**self.bits, dim)
        content = pack_digits(codes.flatten(3).flatten(0, 2), 2**self.bits)
        tensors = {"codes": content.reshape(*pieces.shape[:3], content.shape[1]), "scale": scale, "minimum": minimum}
        return Packed(tensors, self.group_size if dim == -2 else 1)

    def _read(self, packed: Packed, dim: int) -> Float[Tensor, "batch kv_heads pieces rows columns"]:
        content, scale, minimum = (packed.tensors[name] for name in ("codes", "scale", "minimum"))
        shape = list(scale.shape)
        shape[dim] = self.group_size
        codes = unpack_digits(content.flatten(0, 2), 2**self.bits, shape[-2] * shape[-1])
        return from_span(codes.reshape(shape), scale, minimum)
