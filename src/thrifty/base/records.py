"""The records that travel between the pipeline and the methods: a problem, its solution, and how the result is held."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.anatomy import Units


@dataclass(frozen=True)
class Problem:
    """Approximate `weight` so that the output on calibration data changes least: min tr((W - V) gram (W - V)^T).

    weight: [out, in] float32. Rows of several linears that share an input may be stacked: the objective is a sum over rows.
    gram: [in, in] float32, the mean of x x^T over `tokens` calibration inputs; identity where nothing was calibrated.
    """

    weight: Float[Tensor, "out in"]
    gram: Float[Tensor, "in in"]
    tokens: int
    name: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Encoded:
    """How a compressed matrix is held; what an export reads.

    layout `int`: `codes` int8/int16 [out, in] signed, `scale` float32 [out, groups], optional `zero_point` int8/int16 [out, groups]
        (absent when symmetric); value = (code - zero_point) * scale of its group. There are up to 2^bits codes, which fit places of 4 bits
        for `bits` of up to 4, else places of 8; they need not be neighbours (`zero_free` has odd ones only).
    layout `affine`: `codes` int8 [out, in] signed, `scale` and `offset` float32 [out, groups] (bfloat16 holds both); value = code * scale +
        offset of its group.
    layout `dense`: `values` float [out, in]; used for sparse results (the zeros are in the values).
    layout `numbers`: `codes` unsigned [out, in], `numbers` float32 [2^bits] what each code stands for, `scale` float32 [out, groups];
        value = numbers[code] * scale of its group. `whole` float32 [1], where scales are floats of 8 bits over one power of two: times
        this they are those floats.
    layout `int_columns`: `codes` [out, in] unsigned, `levels` int16 [in], `low` and `high` float32 [out, 1]; columns of
        different widths (BAQ).
    layout `additive`: `codes` uint8/uint16 [out, in / group_size, m], `codebooks` float32 [m, 2^b, group_size] (float16 holds them),
        `scale` float32 [out, 1] (bfloat16 holds it); the inputs of a group are (codebooks[0][code 0] + codebooks[1][code 1] + ..) * scale,
        added in this order.
    layout `k_quant`: `codes` int8 [out, in], `multiple` int8 [out, groups], `block_scale` float32 [out, in / 256] (float16 holds it), and
        where the type has a second term `minimum` int8 and `block_minimum` float32 of the same shapes; value = (block_scale * multiple) *
        code - block_minimum * minimum.
    bits: nominal bits of a code (log2 of how many `int` codes there are; the mean over columns for `int_columns`; of a value for `dense`;
        of a weight for `additive` and `k_quant`, codebooks and scales counted).
    group_size: inputs that share a scale, or codes (`additive`); 0 means one scale a row.
    standard: what others call the numbers and their scales, where they have a file format for them: `nvfp4`, `mxfp4`, `mxfp6`, `mxfp8`,
        `fp8`, `Q2_K` to `Q6_K`.
    simulated: no public container holds it at this rate, so it is stored dense and takes no part in size claims unless it goes into ours.
    """

    layout: Literal["int", "affine", "dense", "numbers", "int_columns", "additive", "k_quant"]
    tensors: dict[str, Tensor]
    shape: tuple[int, int]
    bits: float
    group_size: int = 0
    standard: str = ""
    simulated: bool = False

    def decode(self) -> Float[Tensor, "out in"]:
        """The matrix, float32, exactly as every reader of the stored form gets it."""
        if self.layout == "dense":
            return self.tensors["values"].to(torch.float32)
        if self.layout == "int_columns":
            return _decode_columns(self.tensors)
        if self.layout == "additive":
            return _decode_sums(self.tensors)
        if self.layout == "k_quant":
            return _decode_blocks(self.tensors)
        if self.layout == "numbers":
            return self.tensors["numbers"][self.tensors["codes"].long()] * _spread(self.tensors["scale"], self.shape[1])
        codes = self.tensors["codes"].to(torch.float32)
        scale = _spread(self.tensors["scale"], self.shape[1])
        if self.layout == "affine":
            return (codes * scale).add_(_spread(self.tensors["offset"], self.shape[1])).add_(0.0)
        zero_point = self.tensors.get("zero_point")
        if zero_point is not None:
            codes = codes - _spread(zero_point.to(torch.float32), self.shape[1])
        values = codes * scale
        return values.add_(0.0) if bool((self.tensors["scale"] < 0).any()) else values  # zeros are positive

    def rows(self, start: int, stop: int) -> Encoded:
        """The part of the encoding that holds rows start..stop of the matrix."""
        kept = {name: tensor if name in _OF_ALL_ROWS else tensor[start:stop] for name, tensor in self.tensors.items()}
        return replace(self, tensors=kept, shape=(stop - start, self.shape[1]))

    def cpu(self) -> Encoded:
        """The same encoding in main memory."""
        return replace(self, tensors={name: tensor.cpu() for name, tensor in self.tensors.items()})

    @property
    def fixed_width_bits(self) -> float:
        """Bits of a code when every code of a column takes a whole number of them."""
        if self.layout == "int_columns":
            return float(torch.log2(self.tensors["levels"].to(torch.float64)).ceil().mean())
        if self.layout in ("additive", "k_quant"):
            return self.bits
        return float(math.ceil(self.bits))

    @property
    def stored_bits(self) -> int:
        """Bits of the codes, and of the scales and zero points as the narrowest format holds them, whatever file they will lie in.

        Known of an outline, too. Scales of MX and NVFP4 take 8 bits, all others 16, as offsets do; a zero point takes as many as a code.
        `bits` of additive codebooks counts theirs already.
        """
        codes = math.ceil(self.bits * self.shape[0] * self.shape[1])
        if self.layout == "additive":
            return codes
        counts = {name: self.tensors[name].numel() for name in ("scale", "zero_point", "offset") if name in self.tensors}
        scale = 8 if self.standard in ("nvfp4", "mxfp4", "mxfp6", "mxfp8") else 16
        zero_points = math.ceil(self.bits) * counts.get("zero_point", 0)
        return codes + scale * counts.get("scale", 0) + zero_points + 16 * counts.get("offset", 0)

    @property
    def sparsity(self) -> float:
        """Share of exact zeros, 0 to 1."""
        return float((self.decode() == 0).float().mean())


_OF_ALL_ROWS = ("levels", "numbers", "whole", "codebooks")


def _spread(per_group: Tensor, width: int) -> Tensor:
    """[out, groups] -> [out, width], each group's value repeated over its inputs."""
    return per_group.repeat_interleave(-(-width // per_group.shape[1]), dim=1)[:, :width]


def _decode_columns(tensors: dict[str, Tensor]) -> Tensor:
    steps = (tensors["levels"].to(torch.float32) - 1).clamp_min(1)
    scale = (tensors["high"] - tensors["low"]) / steps
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    values = (tensors["codes"].to(torch.float32) - torch.round(-tensors["low"] / scale)) * scale
    return torch.where(tensors["levels"] > 1, values, torch.zeros_like(values))


def _decode_sums(tensors: dict[str, Tensor]) -> Tensor:
    codes, codebooks = tensors["codes"].long(), tensors["codebooks"]
    total = codebooks[0][codes[..., 0]]
    for number in range(1, codebooks.shape[0]):
        total = total + codebooks[number][codes[..., number]]
    return total.flatten(1) * tensors["scale"]


def _decode_blocks(tensors: dict[str, Tensor]) -> Tensor:
    codes, multiple = tensors["codes"].to(torch.float32), tensors["multiple"].to(torch.float32)
    width, groups = codes.shape[1], multiple.shape[1]
    values = codes * _spread(_spread(tensors["block_scale"], groups) * multiple, width)
    if "minimum" in tensors:
        values -= _spread(_spread(tensors["block_minimum"], groups) * tensors["minimum"].to(torch.float32), width)
    return values.add_(0.0)


@dataclass(frozen=True)
class Solution:
    """What a solver found. `values` equals `encoded.decode()` exactly.

    row_loss: [out] (w - v) gram (w - v)^T of each row. column_loss: [in] what each input's rounding added to the loss, for solvers that
    walk through the inputs one by one. latent: what was rounded, where that was not the weight; training starts there.
    """

    values: Float[Tensor, "out in"]
    encoded: Encoded
    row_loss: Float[Tensor, "out"]
    column_loss: Float[Tensor, "in"] | None = None
    warnings: tuple[str, ...] = ()
    details: dict[str, float] = field(default_factory=dict)
    latent: Float[Tensor, "out in"] | None = None

    @property
    def loss(self) -> float:
        """tr((W - V) gram (W - V)^T)."""
        return float(self.row_loss.sum())


@dataclass(frozen=True)
class Cut:
    """The units of a space that stay, in ascending order; all others are removed, wherever their entries lie."""

    units: Units
    keep: Int[Tensor, "kept"]


@dataclass(frozen=True)
class Curve:
    """What one part of a model loses, and what it costs, at each of the options that all parts have. size: number of its weights."""

    name: str
    size: int
    losses: tuple[float, ...]
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Share:
    """Who gets which option: its position, by the name of the part. loss, cost: their sums.

    gap: how far above the least possible loss that is, at most; None where the method does not know.
    """

    options: dict[str, int]
    loss: float
    cost: float
    gap: float | None = None
