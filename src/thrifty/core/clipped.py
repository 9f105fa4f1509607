"""Weights and inputs trained on grids whose ends follow what they are like: by running statistics and learned factors, or by their range.

    x = W + v s_0,    V = (clamp(round(x / s) + z) - z) s,    s = (high - low) / (L - 1),    z = round(first code - low / s)

    statistics   low = mu - alpha_1 sigma,   high = mu + alpha_2 sigma;   mu, sigma: mean and deviation of x, as moving averages
                 mu <- (1 - rho) mu + rho mean(x),   sigma <- (1 - rho) sigma + rho deviation(x),   once a step
    range        low and high keep their places in min(x) .. max(x): nothing is learned but v, which is training by min-max

A symmetric grid has one alpha: mu is 0, sigma the root mean square, and the range that of |x|. The factors begin where the grid that was
found puts them, so that training starts at its codes and scales; what is trained is alpha in parts of that. Gradients pass through both
roundings as if they were not there, and none reach x through its statistics. Inside, v gets the slope g of its entry, and alpha
g (round(u) - u) ds/dalpha, u = x / s; a value that is cut gives v nothing, and g sigma to the alpha of its end.
Inputs x that are rounded to one fixed grid are clipped in the same way, by statistics, with the mean and deviation of each batch.
Sources: Farronato, Scheidegger, Rigotti, Malossi, Magno and Qin (2025), arXiv 2506.09782, from whose abstract the moving averages and
learned factors are; their form is ours. Of the gradient for scales, Esser et al. (2019), arXiv 1902.08153.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.activations import SMALLEST, Rounding
from thrifty.core.activations import ends as end_codes
from thrifty.core.codebooks.learning import straight_through
from thrifty.core.grids import snap_scale
from thrifty.core.trainable import NARROWEST, WIDEST, Codes, GridWeight

Ends = Literal["statistics", "range"]

MOMENTUM = 0.01
"""Share of the new statistics of weights in the running ones, at each step."""

INPUT_MOMENTUM = 0.1
"""The same of inputs, of which each batch shows others."""

FLAT = 1e-3
"""A deviation or a range is taken to be as large as this share of a step, at least."""


class ClippedWeight(GridWeight):
    """One matrix on its way. offset [out, groups, size] is what is trained, and with `statistics` the factors [out, groups, 1] of the ends:
    high alone where the grid is symmetric, else low and high."""

    def __init__(self, weight: Float[Tensor, "out in"], start: Encoded, codes: Codes, ends: Ends) -> None:
        super().__init__(weight, start, codes)
        self.ends, self.symmetric = ends, "zero_point" not in start.tensors
        centre, spread = self._frame()
        self.centre, self.spread = centre.clone(), spread.clone()
        least, most = ((code - self.zero_point) * self.scale for code in (codes.low, codes.high))
        self.reach = tuple((end - centre) / spread for end in (least, most))
        self.low, self.high = torch.ones_like(centre).requires_grad_(), torch.ones_like(centre).requires_grad_()

    @property
    def parameters(self) -> dict[str, Tensor]:
        if self.ends == "range":
            return {"offset": self.offset}
        return {"offset": self.offset, "high": self.high} | ({} if self.symmetric else {"low": self.low})

    @property
    def state(self) -> dict[str, Tensor]:
        return {"centre": self.centre, "spread": self.spread}

    def latent(self) -> Float[Tensor, "out groups size"]:
        """The weights that are rounded."""
        return self.weight + self.offset * self.scale

    def settle(self) -> dict[str, Bool[Tensor, "*shape"]]:
        """Ends stay on their sides, and the statistics follow the weights."""
        rate = MOMENTUM if self.ends == "statistics" else 1.0
        for kept, seen in zip((self.centre, self.spread), self._frame(), strict=True):
            kept.lerp_(seen, rate)
        for factor in (self.low, self.high):
            factor.clamp_(NARROWEST, WIDEST)
        return {}

    def _frame(self) -> tuple[Float[Tensor, "out groups one"], Float[Tensor, "out groups one"]]:
        """(centre, spread) of the latent weights as they are."""
        latent = self.latent().detach()
        if self.ends == "range":
            low, high = latent.amin(-1, keepdim=True), latent.amax(-1, keepdim=True)
            centre, spread = (low, high - low) if not self.symmetric else (torch.zeros_like(low), torch.maximum(-low, high))
        elif self.symmetric:
            spread = latent.square().mean(-1, keepdim=True).sqrt()
            centre = torch.zeros_like(spread)
        else:
            spread, centre = torch.std_mean(latent, -1, correction=0, keepdim=True)
        return centre, torch.maximum(spread, FLAT * self.scale.abs())

    def _grid(self) -> tuple[Float[Tensor, "out groups one"], Float[Tensor, "out groups one"]]:
        codes = self.codes
        high = self.centre + self.spread * self.reach[1] * self.high
        if self.symmetric:
            exact = high / codes.high
        else:
            # zero is one of the points, as it was
            low, high = (self.centre + self.spread * self.reach[0] * self.low).clamp_max(0), high.clamp_min(0)
            exact = (high - low) / (codes.high - codes.low)
        scale = straight_through(exact, snap_scale(exact.detach(), codes.scale_bits))
        if self.symmetric:
            return scale, self.zero_point
        place = codes.low - low / scale
        return scale, straight_through(place, place.detach().round().clamp(codes.low, codes.high))

    def _multiples(self, scale: Float[Tensor, "out groups one"]) -> Float[Tensor, "out groups size"]:
        return self.latent() / scale


class ClippedInputs:
    """One fixed grid of inputs on its way. rounding: where it begins. mean, deviation: of the inputs that it was found for. high [1], and
    low [1] where the grid is not symmetric, are what is trained: factors of the ends."""

    def __init__(self, rounding: Rounding, mean: float, deviation: float, device: torch.device) -> None:
        assert rounding.scale is not None and rounding.zero_point is not None, "only a fixed grid has ends"
        self.rounding, self.codes = rounding, end_codes(rounding.bits)
        scale, zero_point = rounding.scale.to(device), rounding.zero_point.to(device)
        least, most = ((code - zero_point) * scale for code in self.codes)
        self.centre = torch.zeros_like(scale) if rounding.symmetric else torch.full_like(scale, mean)
        spread = math.hypot(mean, deviation) if rounding.symmetric else deviation
        self.spread = torch.maximum(torch.full_like(scale, spread), FLAT * scale)
        self.reach = tuple((end - self.centre) / self.spread for end in (least, most))
        self.low, self.high = torch.ones_like(scale).requires_grad_(), torch.ones_like(scale).requires_grad_()
        self.floor = FLAT * scale
        self.seen: tuple[Tensor, Tensor] | None = None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is trained of it, by name."""
        return {"high": self.high} | ({} if self.rounding.symmetric else {"low": self.low})

    @property
    def state(self) -> dict[str, Tensor]:
        """What `settle` changes besides."""
        return {"centre": self.centre, "spread": self.spread}

    def __call__(self, inputs: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens width"]:
        """The inputs, rounded; their statistics are kept until `settle`."""
        values = inputs.detach().to(torch.float32)
        mean = torch.zeros_like(self.centre) if self.rounding.symmetric else values.mean().view(1)
        self.seen = mean, (values - mean).square().mean().sqrt().view(1)
        scale, zero_point = self._grid()
        low, high = (code - zero_point for code in self.codes)
        exact = inputs.to(torch.float32) / scale
        multiple = straight_through(exact, exact.detach().round())
        return (multiple.clamp(low, high) * scale).to(inputs.dtype)

    def settle(self) -> None:
        """Ends stay on their sides, and the statistics follow the inputs."""
        for factor in (self.low, self.high):
            factor.clamp_(NARROWEST, WIDEST)
        if self.seen is not None:
            self.centre.lerp_(self.seen[0], INPUT_MOMENTUM)
            self.spread.copy_(torch.maximum(self.spread.lerp(self.seen[1], INPUT_MOMENTUM), self.floor))
            self.seen = None

    def _grid(self) -> tuple[Float[Tensor, "1"], Float[Tensor, "1"]]:
        """(scale, zero point), such as a checkpoint holds them."""
        least, most = self.codes
        high = self.centre + self.spread * self.reach[1] * self.high
        if self.rounding.symmetric:
            exact = high / most
        else:
            low, high = (self.centre + self.spread * self.reach[0] * self.low).clamp_max(0), high.clamp_min(0)
            exact = (high - low) / (most - least)
        held = exact.detach().clamp_min(SMALLEST).to(torch.bfloat16).to(torch.float32)
        scale = straight_through(exact, held)
        if self.rounding.symmetric:
            return scale, torch.zeros_like(scale)
        place = least - low / scale
        return scale, straight_through(place, place.detach().round().clamp(least, most))

    def settled(self) -> Rounding:
        """The grid as it is now."""
        scale, zero_point = (tensor.detach().cpu() for tensor in self._grid())
        return replace(self.rounding, scale=scale, zero_point=zero_point)
