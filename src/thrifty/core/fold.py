"""Folding a diagonal scale into the modules around a space: what is divided before is multiplied after, so the function stays.

Consumers read x / scale, so their columns are multiplied by `scale`; producers write x / scale, so their gains or rows are divided by it.
With a shift they read (x - shift) / scale: what a normalization no longer adds, the consumers' biases do.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def scale_columns(weight: Float[Tensor, "out in"], scale: Float[Tensor, "in"]) -> Float[Tensor, "out in"]:
    """The consumer of x / scale that computes what `weight` computed from x."""
    return weight * scale.to(weight.dtype)


def divide_norm(weight: Float[Tensor, "width"], scale: Float[Tensor, "width"], plus_one: bool = False) -> Float[Tensor, "width"]:
    """The gain of a normalization that puts out x / scale. plus_one: the stored gain stands for 1 + weight (Gemma)."""
    scale = scale.to(weight.dtype)
    return (weight + 1) / scale - 1 if plus_one else weight / scale


def shift_norm(
    bias: Float[Tensor, "width"], scale: Float[Tensor, "width"], shift: Float[Tensor, "width"] | None = None
) -> Float[Tensor, "width"]:
    """The bias of a normalization that puts out (x - shift) / scale."""
    return (bias if shift is None else bias - shift.to(bias.dtype)) / scale.to(bias.dtype)


def add_shift(bias: Float[Tensor, "out"], weight: Float[Tensor, "out in"], shift: Float[Tensor, "in"]) -> Float[Tensor, "out"]:
    """The bias of a consumer of x - shift that computes what it computed from x. weight: as it was for x."""
    return bias + weight @ shift.to(weight.dtype)


def divide_rows(
    weight: Float[Tensor, "rows in"], scale: Float[Tensor, "width"], repeat: int = 1, unit_size: int = 1
) -> Float[Tensor, "rows in"]:
    """The producer that writes x / scale. A bias is passed as one column.

    repeat, unit_size: those of the space; each run of `unit_size` channels on the consumer side is `repeat` copies of
    unit_size / repeat channels of the producer, and all copies must carry the same scale.
    Raises ValueError when the copies differ or the widths do not match.
    """
    if repeat > 1:
        copies = _copies(scale, repeat, unit_size)
        if not torch.equal(copies, copies[:, :1].expand_as(copies)):
            raise ValueError(f"the scale of a space with repeat {repeat} must be the same for all copies of a producer's channel")
        scale = copies[:, 0].reshape(-1)
    if scale.shape[0] != weight.shape[0]:
        raise ValueError(f"a producer with {weight.shape[0]} rows cannot be divided by {scale.shape[0]} scales")
    return weight / scale[:, None].to(weight.dtype)


def tie(values: Float[Tensor, "width"], repeat: int, unit_size: int, how: Literal["mean", "max"]) -> Float[Tensor, "width"]:
    """One value for all copies of a producer's channel: their mean or their maximum, spread over the copies again."""
    if repeat == 1:
        return values
    copies = _copies(values, repeat, unit_size)
    shared = copies.mean(1, keepdim=True) if how == "mean" else copies.amax(1, keepdim=True)
    return shared.expand_as(copies).reshape(-1)


def _copies(values: Float[Tensor, "width"], repeat: int, unit_size: int) -> Float[Tensor, "units repeat size"]:
    if unit_size % repeat or values.shape[0] % unit_size:
        raise ValueError(f"units of {unit_size} channels with {repeat} copies do not divide a space of width {values.shape[0]}")
    return values.reshape(-1, repeat, unit_size // repeat)
