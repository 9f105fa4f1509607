"""Folding a diagonal scale into the modules around a space: what is divided before is multiplied after, so the function stays.

Consumers read x / scale, so their columns are multiplied by `scale`; producers write x / scale, so their gains or rows are divided by it.
Spaces of grouped queries hold copies of what a producer writes: `tie` makes values alike for all copies of a channel, `untie` takes one
of each, `copied` puts them back.
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


def divide_rows(
    weight: Float[Tensor, "rows in"], scale: Float[Tensor, "width"], repeat: int = 1, unit_size: int = 1
) -> Float[Tensor, "rows in"]:
    """The producer that writes x / scale. A bias is passed as one column.

    repeat, unit_size: those of the space; each run of `unit_size` channels on the consumer side is `repeat` copies of
    unit_size / repeat channels of the producer, and all copies must carry the same scale.
    Raises ValueError when the copies differ or the widths do not match.
    """
    scale = untie(scale, repeat, unit_size)
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


def untie(values: Float[Tensor, "width"], repeat: int, unit_size: int) -> Float[Tensor, "rows"]:
    """One value for each channel of the producer. Raises ValueError when its copies differ."""
    if repeat == 1:
        return values
    copies = _copies(values, repeat, unit_size)
    if not torch.equal(copies, copies[:, :1].expand_as(copies)):
        raise ValueError(f"the scale of a space with repeat {repeat} must be the same for all copies of a producer's channel")
    return copies[:, 0].reshape(-1)


def copied(values: Float[Tensor, "rows"], repeat: int, unit_size: int) -> Float[Tensor, "width"]:
    """Each value of a producer's channel for all of its copies."""
    return values.reshape(-1, 1, unit_size // repeat).expand(-1, repeat, -1).reshape(-1) if repeat > 1 else values


def _copies(values: Float[Tensor, "width"], repeat: int, unit_size: int) -> Float[Tensor, "units repeat size"]:
    if unit_size % repeat or values.shape[0] % unit_size:
        raise ValueError(f"units of {unit_size} channels with {repeat} copies do not divide a space of width {values.shape[0]}")
    return values.reshape(-1, repeat, unit_size // repeat)
