"""An equivalent rewrite of what flows between matrices: a map that producers take on and consumers undo, so that the function stays.

z = ((x - shift) / scale) Q,   x W^T + b = z (W diag(scale) Q)^T + (b + W shift),   Q orthonormal
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.core.fold import divide_rows, scale_columns, untie
from thrifty.core.hadamard import Rotation


@dataclass(frozen=True)
class Rewrite:
    """Consumers of `space` read z instead of x.

    scale: [width] positive. turn: Q; None leaves the directions as they are. shift: [width]; None takes nothing off. In a space of grouped
    queries all copies of a channel are treated alike. while_running: whether the consumers turn what they read themselves, so that the
    producers write x as before; then there is a turn without signs, and nothing else.
    """

    space: Space
    scale: Float[Tensor, "width"]
    turn: Rotation | None = None
    shift: Float[Tensor, "width"] | None = None
    while_running: bool = False

    @property
    def by_channel(self) -> bool:
        """Whether every channel is only multiplied, so that what is known of its size stays known."""
        return self.turn is None and self.shift is None

    def to(self, device: torch.device | str) -> Rewrite:
        """The same on a device."""
        shift = None if self.shift is None else self.shift.to(device)
        turn = None if self.turn is None else replace(self.turn, signs=self.turn.signs.to(device))
        return replace(self, scale=self.scale.to(device), turn=turn, shift=shift)

    def of(self, inputs: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """z of x."""
        values = inputs if self.shift is None else inputs - self.shift
        values = values / self.scale
        return values if self.turn is None else self.turn.of(values)

    def consumer(self, weight: Float[Tensor, "out width"]) -> Float[Tensor, "out width"]:
        """The matrix that computes from z what `weight` computes from x, up to the constant `correction`."""
        scaled = scale_columns(weight, self.scale)
        return scaled if self.turn is None else self.turn.of(scaled)

    def correction(self, weight: Float[Tensor, "out width"]) -> Float[Tensor, "out"]:
        """What the bias of a consumer gets added, W shift; weight: as it was before."""
        return weight.new_zeros(weight.shape[0]) if self.shift is None else weight @ self.shift.to(weight.dtype)

    def producer(self, weight: Float[Tensor, "rows in"]) -> Float[Tensor, "rows in"]:
        """The matrix that writes z + the same constant for all inputs, where `weight` writes x."""
        repeat, size = self.space.repeat, self.space.unit_size
        divided = divide_rows(weight, self.scale, repeat, size)
        return divided if self.turn is None else self.turn.producer(repeat, size).of(divided.T).T.contiguous()

    def producer_bias(self, bias: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Its bias."""
        if self.shift is not None:
            bias = bias - untie(self.shift, self.space.repeat, self.space.unit_size).to(bias.dtype)
        return self.producer(bias[:, None])[:, 0]

    def under(self, gram: Float[Tensor, "width width"], mean: Float[Tensor, "width"] | None = None) -> Float[Tensor, "width width"]:
        """The Gram matrix of z: no second calibration is needed. mean: of x, which a shift needs.

        E[z z^T] = Q^T D (G - shift mean^T - mean shift^T + shift shift^T) D Q,   D = diag(1 / scale)
        """
        if self.shift is not None:
            if mean is None:
                raise ValueError("the Gram matrix of shifted inputs follows from that of the inputs and their mean; give the mean")
            outer = torch.outer(self.shift, mean)
            gram = gram - outer - outer.T + torch.outer(self.shift, self.shift)
        gram = gram / (self.scale[:, None] * self.scale[None, :])
        return gram if self.turn is None else self.turn.both(gram)
