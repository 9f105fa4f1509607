"""A matrix on a grid, differentiable: what training moves while every value that is computed with lies on the grid.

    V = clamp(round(W / s + v)) s,   s = a s_0,   gradients through `round` as if it were not there

The offsets v, in steps of the grid, stand for latent weights W + v s, and the stretches a for the scales: what is trained has no unit, so
one rate does for every matrix. Where a value is clamped its offset gets no gradient, and the scale gets that of the outermost code.
Source of the gradient for the scale: Esser, McKinstry, Bablani, Appuswamy and Modha (2019), arXiv 1902.08153.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.codebooks.learning import straight_through
from thrifty.core.grids import code_limits, grouped, significant_bits, snap_scale

INSIDE = 0.49
"""How far from the middle of its cell, in parts of the cell, a weight begins at most."""


@dataclass(frozen=True)
class Codes:
    """The codes of a grid: low, low + stride, .., high. scale_bits: significant bits of a scale, as a container holds it."""

    low: int
    high: int
    stride: int
    scale_bits: int

    @classmethod
    def of_integers(cls, levels: int, symmetric: bool) -> Codes:
        """Those of an integer grid."""
        return cls(*code_limits(levels), 1, significant_bits(levels, symmetric))

    def nearest(self, multiples: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
        """The nearest code less the zero point, for multiples of the scale; the gradient passes straight through but where it is cut."""
        low = self.low - zero_point
        rounded = torch.round((multiples.detach() - low) / self.stride) * self.stride + low
        return straight_through(multiples, rounded).clamp(low, self.high - zero_point)


class GridWeight:
    """The codes and scales of one matrix on their way. offset [out, groups, size] and stretch [out, groups, 1] are what is trained.

    start: where it begins, codes included. Each weight begins in the place of its cell that is nearest to `weight`.
    """

    def __init__(self, weight: Float[Tensor, "out in"], start: Encoded, codes: Codes) -> None:
        self.start, self.codes, self.shape = start, codes, weight.shape
        self.weight = grouped(weight, start.group_size)
        self.scale = start.tensors["scale"].to(weight)[..., None]
        zero_point = start.tensors.get("zero_point")
        self.zero_point = torch.zeros_like(self.scale) if zero_point is None else zero_point.to(weight)[..., None]
        multiple = grouped(start.tensors["codes"].to(weight), start.group_size) - self.zero_point
        exact, reach = self.weight / self.scale, INSIDE * codes.stride
        self.offset = (exact.clamp(multiple - reach, multiple + reach) - exact).requires_grad_()
        self.stretch = torch.ones_like(self.scale).requires_grad_()

    def values(self) -> Float[Tensor, "out in"]:
        """The matrix, differentiable in the offsets and stretches."""
        exact = self.scale * self.stretch
        scale = straight_through(exact, snap_scale(exact.detach(), self.codes.scale_bits))  # one that a container holds
        return (self._multiple(scale) * scale).reshape(self.shape)

    def _multiple(self, scale: Float[Tensor, "out groups one"]) -> Float[Tensor, "out groups size"]:
        return self.codes.nearest(self.weight / scale + self.offset, self.zero_point)

    def encoded(self) -> Encoded:
        """How it is held."""
        scale = snap_scale(self.scale * self.stretch, self.codes.scale_bits)
        codes = torch.round(self._multiple(scale)) + self.zero_point
        tensors = {name: tensor.to(scale.device) for name, tensor in self.start.tensors.items()}
        tensors |= {"scale": scale[..., 0], "codes": codes.to(torch.int8).reshape(self.shape)}
        return replace(self.start, tensors=tensors)
