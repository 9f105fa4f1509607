"""One grid for a layer that is as fine as a grid for each channel: what differs between channels is moved out of the values.

    channel c, asymmetric    s_c = (high_c - low_c) / (2^b - 1),  z_c = round(-2^(b-1) - low_c / s_c)
                             x_q = (clamp(round(x / s_c) + z_c) - z_c) s_c
    the layer, symmetric     s = mean over c of s_c,  z = 0,  of  x' = (x - m_c) / r_c,  r_c = s_c / s,  m_c = -z_c s_c

Codes of x' on the layer's grid are those of x on the channel's, for m_c is a whole number of its steps: so x'_q r_c + m_c = x_q.
Where nothing can be taken off x, s_c = max |x| / ((2^b - 1) / 2), z_c = 0 and m_c = 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

STILL = 1e-6
"""A channel that moves by less than this part of its largest magnitude counts as constant."""


def channel_grids(
    low: Float[Tensor, "width"], high: Float[Tensor, "width"], bits: int
) -> tuple[Float[Tensor, "width"], Float[Tensor, "width"]]:
    """(scale, zero point) of each channel; they need not hold zero. The scale of a constant channel is 0."""
    span = high - low
    moving = span > STILL * torch.maximum(low.abs(), high.abs())
    scale = torch.where(moving, span / (2**bits - 1), 0.0)
    zero_point = torch.where(moving, (-(2 ** (bits - 1)) - low / torch.where(moving, scale, 1.0)).round(), 0.0)
    return scale, zero_point


def layer_grid(
    low: Float[Tensor, "width"], high: Float[Tensor, "width"], bits: int
) -> tuple[Float[Tensor, "width"], Float[Tensor, "width"]]:
    """(r, m): (x - m) / r is as fine on one symmetric grid as x is on one a channel. A constant channel becomes 0."""
    scale, zero_point = channel_grids(low, high, bits)
    return ratios(scale), torch.where(scale > 0, -zero_point * scale, low)


def centred_grid(low: Float[Tensor, "width"], high: Float[Tensor, "width"]) -> Float[Tensor, "width"]:
    """r: x / r is as fine on one symmetric grid as x is on a symmetric one a channel."""
    return ratios(torch.maximum(-low, high).clamp_min(0))


def ratios(scale: Float[Tensor, "width"]) -> Float[Tensor, "width"]:
    """Each scale over the mean of all; 1 for channels that have none."""
    live = scale > 0
    return torch.where(live, scale / scale[live].mean() if bool(live.any()) else scale, 1.0)
