"""A matrix that is trained: on its grid at every step, or free, or free along few directions. What was pruned stays zero.

    grid      V = clamp(round(W / s + v)) s,   s = a s_0,   gradients through `round` as if it were not there
    free      V = M * (W + r v),       r the root mean square of a row of W,   M the mask of what is not zero
    low rank  V = M * (W + r B A),     A drawn once for a start, B from zero

The offsets v, in steps of the grid, stand for latent weights W + v s, and the stretches a for the scales: what is trained has no unit, so
one rate does for every matrix, and for free values it is in parts of r. Where a value is clamped its offset gets no gradient, and the scale
gets that of the outermost code.
Sources: of the gradient for the scale, Esser, McKinstry, Bablani, Appuswamy and Modha (2019), arXiv 1902.08153; of the low rank, Hu, Shen,
Wallis, Allen-Zhu, Li, Wang, Wang and Chen (2021), arXiv 2106.09685.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.affine_grids import snap_offset
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


NARROWEST, WIDEST = 0.25, 4.0
"""What a scale may become, in parts of what it was."""


LEAST = 0.01
"""What the root mean square of a vector counts as, at least, so that one of zeros can move."""


class Trained(ABC):
    """One matrix on its way."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """What is trained of it, by name: leaves that require gradients."""

    @abstractmethod
    def values(self) -> Float[Tensor, "out in"]:
        """The matrix, differentiable in the parameters."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What `settle` changes, in place, besides the parameters, by name: a stopped run needs it to go on."""
        return {}

    def settle(self) -> dict[str, Bool[Tensor, "*shape"]]:
        """Called after every step: bring the parameters back to where they may be. Returns, by name, which entries now stand at another
        point, so that what is known of their gradients no longer holds."""
        return {}

    @abstractmethod
    def encoded(self) -> Encoded:
        """How it is held."""


class GridWeight(Trained):
    """The codes and scales of one matrix on their way. offset [out, groups, size] and stretch [out, groups, 1] are what is trained.

    start: where it begins, codes included; of layout `affine` the offsets stay. Each weight begins in the place of its cell that is nearest
    to `weight`.
    """

    def __init__(self, weight: Float[Tensor, "out in"], start: Encoded, codes: Codes) -> None:
        self.start, self.codes, self.shape = start, codes, weight.shape
        self.weight = grouped(weight, start.group_size)
        self.scale = start.tensors["scale"].to(weight)[..., None]
        zero_point = start.tensors.get("zero_point")
        self.zero_point = torch.zeros_like(self.scale) if zero_point is None else zero_point.to(weight)[..., None]
        self.begin = start.tensors.get("offset")
        multiple = grouped(start.tensors["codes"].to(weight), start.group_size) - self.zero_point
        exact, reach = self._from_zero(self.scale) / self.scale, INSIDE * codes.stride
        self.offset = (exact.clamp(multiple - reach, multiple + reach) - exact).requires_grad_()
        self.stretch = torch.ones_like(self.scale).requires_grad_()

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"offset": self.offset, "stretch": self.stretch}

    def settle(self) -> dict[str, Bool[Tensor, "*shape"]]:
        """Scales keep their signs."""
        self.stretch.clamp_(NARROWEST, WIDEST)
        return {}

    def values(self) -> Float[Tensor, "out in"]:
        scale, zero_point = self._grid()
        values = self.codes.nearest(self._multiples(scale), zero_point) * scale
        return (values if self.begin is None else values + self._place(self.begin, scale)).reshape(self.shape)

    def _place(self, begin: Float[Tensor, "out groups"], scale: Float[Tensor, "out groups one"]) -> Float[Tensor, "out groups one"]:
        """What code 0 stands for beside this scale, as a container holds it."""
        return snap_offset(begin.to(scale)[..., None], scale.detach())

    def _from_zero(self, scale: Float[Tensor, "out groups one"]) -> Float[Tensor, "out groups size"]:
        """How far weights are from what code 0 stands for."""
        return self.weight if self.begin is None else self.weight - self._place(self.begin, scale)

    def _grid(self) -> tuple[Float[Tensor, "out groups one"], Float[Tensor, "out groups one"]]:
        """(scale, zero point), such as a container holds them, differentiable in the parameters."""
        exact = self.scale * self.stretch
        return straight_through(exact, snap_scale(exact.detach(), self.codes.scale_bits)), self.zero_point

    def _multiples(self, scale: Float[Tensor, "out groups one"]) -> Float[Tensor, "out groups size"]:
        """What is rounded: the latent weights in steps of the grid."""
        return self._from_zero(scale) / scale + self.offset

    def encoded(self) -> Encoded:
        scale, zero_point = (tensor.detach() for tensor in self._grid())
        codes = torch.round(self.codes.nearest(self._multiples(scale).detach(), zero_point)) + zero_point
        tensors = {name: tensor.to(scale.device) for name, tensor in self.start.tensors.items()}
        tensors |= {"scale": scale[..., 0], "codes": codes.to(torch.int8).reshape(self.shape)}
        if self.begin is not None:
            tensors["offset"] = self._place(self.begin, scale)[..., 0]
        if "zero_point" in tensors:
            tensors["zero_point"] = zero_point[..., 0].to(tensors["zero_point"].dtype)
        return replace(self.start, tensors=tensors)


class FreeWeight(Trained):
    """The values of one matrix, but for those that `start` has at zero. offset [out, in] is what is trained."""

    def __init__(self, start: Float[Tensor, "out in"]) -> None:
        self.start, self.mask = start, start != 0
        self.spread = start.square().mean(1, keepdim=True).sqrt()
        self._free()

    def _free(self) -> None:
        self.offset = torch.zeros_like(self.start).requires_grad_()

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"offset": self.offset}

    def _change(self) -> Float[Tensor, "out in"]:
        return self.offset

    def values(self) -> Float[Tensor, "out in"]:
        return (self.start + self.spread * self._change()) * self.mask

    def encoded(self) -> Encoded:
        values = self.values().detach()
        return Encoded("dense", {"values": values}, (values.shape[0], values.shape[1]), bits=8.0 * values.element_size())


class LowRankWeight(FreeWeight):
    """The same along `rank` directions: down [rank, in] and up [out, rank] are what is trained; a step of either moves the values as far as
    one of a free matrix, about."""

    def __init__(self, start: Float[Tensor, "out in"], rank: int, seed: int) -> None:
        self.rank, self.seed = rank, seed
        super().__init__(start)

    def _free(self) -> None:
        rows, columns = self.start.shape
        draw = torch.randn(self.rank, columns, generator=torch.Generator().manual_seed(self.seed))
        self.down = (draw / math.sqrt(self.rank)).to(self.start).requires_grad_()
        self.up = self.start.new_zeros(rows, self.rank).requires_grad_()

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"down": self.down, "up": self.up}

    def _change(self) -> Float[Tensor, "out in"]:
        return self.up @ self.down


class FreeVector:
    """A bias, or the weights of a norm: v = start + r offset, r the root mean square of `start`, LEAST at least."""

    def __init__(self, start: Float[Tensor, "width"]) -> None:
        self.start = start
        self.spread = start.square().mean().sqrt().clamp_min(LEAST)
        self.offset = torch.zeros_like(start).requires_grad_()

    def values(self) -> Float[Tensor, "width"]:
        """The vector, differentiable in its offset."""
        return self.start + self.spread * self.offset
