"""What goes into the scan of a state-space mixer, worked out from the mixer's own modules: it never shows it itself."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.base.errors import InputError
from thrifty.core.state_space import Scan

_MAMBA = ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "act")
_MAMBA2 = ("in_proj", "conv1d", "dt_bias", "A_log", "act", "n_groups", "head_dim", "num_heads", "time_step_limit")


def scan_of(mixer: nn.Module, hidden: Float[Tensor, "rows time width"]) -> Scan:
    """The scan of a Mamba or Mamba-2 mixer for these inputs, in float32; raises InputError for any other mixer.

    A head of Mamba-2 has one decay: it is given for each of its channels.
    """
    if all(hasattr(mixer, name) for name in _MAMBA):
        return _mamba(mixer, hidden)
    if all(hasattr(mixer, name) for name in _MAMBA2):
        return _mamba2(mixer, hidden)
    raise InputError(f"{type(mixer).__name__} is no mixer of Mamba or Mamba-2, so its states cannot be judged; leave its states uncut")


@torch.no_grad()
def convolution_reads(mixer: nn.Module, hidden: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time channels"]:
    """What the short convolution of a Mamba or Mamba-2 mixer reads; raises InputError for any other mixer."""
    if all(hasattr(mixer, name) for name in _MAMBA):
        return mixer.in_proj(hidden).chunk(2, dim=-1)[0]
    if all(hasattr(mixer, name) for name in _MAMBA2):
        convolved, heads = mixer.conv1d.in_channels, mixer.num_heads
        return mixer.in_proj(hidden)[..., -convolved - heads : -heads]
    raise InputError(
        f"{type(mixer).__name__} is no mixer of Mamba or Mamba-2, so it is not known what its convolution reads; leave it as it is"
    )


@torch.no_grad()
def time_step_reads(mixer: nn.Module, hidden: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time rank"]:
    """What the projection of the time step of a Mamba mixer reads."""
    return mixer.x_proj(_convolved(mixer, convolution_reads(mixer, hidden)))[..., : mixer.dt_proj.in_features]


@torch.no_grad()
def _mamba(mixer: nn.Module, hidden: Tensor) -> Scan:
    inner = _convolved(mixer, convolution_reads(mixer, hidden))
    rank, states = mixer.dt_proj.in_features, mixer.A_log.shape[1]
    step, b, c = mixer.x_proj(inner).split([rank, states, states], dim=-1)
    delta = functional.softplus(mixer.dt_proj(step))
    return Scan(*(part.detach().float() for part in (delta, mixer.A_log, b, c, inner)))


@torch.no_grad()
def _mamba2(mixer: nn.Module, hidden: Tensor) -> Scan:
    heads, size, groups = mixer.num_heads, mixer.head_dim, mixer.n_groups
    inner, convolved = heads * size, mixer.conv1d.in_channels
    states = (convolved - inner) // (2 * groups)
    x, b, c = _convolved(mixer, convolution_reads(mixer, hidden)).split([inner, groups * states, groups * states], dim=-1)
    delta = functional.softplus(mixer.in_proj(hidden)[..., -heads:] + mixer.dt_bias).clamp(*mixer.time_step_limit)
    a_log = mixer.A_log.repeat_interleave(size)[:, None].expand(-1, states)
    b, c = (part.unflatten(-1, (groups, states)) for part in (b, c))
    return Scan(*(part.detach().float() for part in (delta.repeat_interleave(size, -1), a_log, b, c, x)))


def _convolved(mixer: nn.Module, values: Tensor) -> Tensor:
    return mixer.act(mixer.conv1d(values.mT)[..., : values.shape[1]].mT)
