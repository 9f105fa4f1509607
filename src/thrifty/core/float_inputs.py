"""Rounding of inputs to small floats, as compressed-tensors does it while a model runs, to the bit in float32.

    x_q = nearest(clamp(x / s)) s

    fp8      s = max |x| / 448 of each token, of all tokens of a call, or fixed beforehand
    nvfp4    s = e4m3(g max |x| / 6) / g of each 16 channels of a token; g = 448 * 6 / max |x| is fixed beforehand
    mxfp4    s = 2^(e - 2) of each 32 channels of a token, e = floor(log2 max |x|), one more from 1.75 times that power on
    mxfp8    s = 2^(e - 8), as before

That exponent is not the floor of the OCP text, which targets of weights have: it is what readers of compressed-tensors compute.
Sources: OCP Microscaling Formats (MX) Specification v1.0 (2023); the package compressed-tensors 0.20.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.formats import FLOATS
from thrifty.core.scaled import STANDARDS

LARGEST_E4M3 = 448.0
"""The largest number of e4m3."""

_OFFSETS = {"mxfp4": 2, "mxfp8": 8}
"""Floor of the logarithm of the largest number."""

_ZERO_SCALE = {"fp8": torch.finfo(torch.float32).eps, "nvfp4": 0.125}
"""What stands for a scale that would be zero."""


def rounded_floats(
    inputs: Float[Tensor, "*tokens width"], standard: str, *, by_token: bool = False, scale: Float[Tensor, "1"] | None = None
) -> Float[Tensor, "*tokens width"]:
    """The inputs, float32, rounded to a standard of `core.scaled`.

    by_token: whether each token has its own scale, of `fp8` without `scale`. scale: the fixed one of `fp8`, or g of `nvfp4`, which needs
    it.
    """
    size = STANDARDS[standard].group_size
    groups = inputs.unflatten(-1, (-1, size)) if size else inputs
    if scale is not None and not size:
        local = scale
    else:
        most = groups.abs().amax() if not size and not by_token else groups.abs().amax(-1, keepdim=True)
        local = _local(most, standard, scale)
        local = torch.where(most.isfinite(), local, torch.nan)  # what is no number must not come out as one
    return _nearest(groups / local, STANDARDS[standard].numbers).mul_(local).reshape(inputs.shape)


def global_scale(most: float) -> float:
    """g of `nvfp4` for inputs whose largest magnitude is `most`: the largest group gets the largest scale that e4m3 has."""
    return LARGEST_E4M3 * 6 / most if most > LARGEST_E4M3 * 6 / 3e38 else 1.0


def _local(most: Tensor, standard: str, scale: Tensor | None) -> Tensor:
    """The scale of each group, from its largest magnitude."""
    if standard in _OFFSETS:
        mantissa, exponent = torch.frexp(most)  # the mantissa lies between a half and 1
        exponent = exponent - 1 + (mantissa >= 0.875).to(exponent.dtype) - _OFFSETS[standard]
        exponent = torch.where(most > 0, exponent, -127).clamp(-127, 128)
        return torch.ldexp(torch.ones_like(most), exponent)
    if standard == "fp8":
        local = most / LARGEST_E4M3
        return torch.where(local == 0, _ZERO_SCALE[standard], local)
    assert scale is not None, "nvfp4 has a scale for all groups"
    local = (scale * (most / 6)).clamp_max(LARGEST_E4M3).to(torch.float8_e4m3fn).to(torch.float32)
    return torch.where(local == 0, _ZERO_SCALE[standard], local) / scale


def _nearest(values: Tensor, numbers: str) -> Tensor:
    """The nearest number, of two as near the even one; what lies beyond the largest becomes the largest."""
    if numbers == "e4m3":
        return values.clamp_(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).to(torch.float32)
    return FLOATS[numbers]().nearest(values)
