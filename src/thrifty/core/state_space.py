"""What single states of a selective scan are worth: the recurrence of Mamba, walked once with all rows side by side.

    h_t = exp(delta_t A) h_{t-1} + delta_t x_t b_t,    y_t[d] = sum over n of c_t[n] h_t[d, n],    A = -exp(A_log),    h_0 = 0

A state is an entry (channel d, place n) of h. `removal_errors` is exact: given delta, b, c and x, no state depends on another, so a second
recurrence in which every decay is replaced tells for each of them alone how far y moves. `weighted_scores` and `votes` are the published
scores of SparseSSM. Time is the outer loop, so that nothing is held that is as long as the rows but the inputs themselves.
Source: Tuo and Wang (2025), arXiv 2506.09613.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.core.masks import keep_per_row

Mode = Literal["unit_decay", "memoryless"]
TimeWeights = Literal["power", "geometric", "linear", "window", "uniform"]

FORGETS = 20.0
"""An A_log at which a state forgets everything from step to step: its decay exp(-delta e^20) is 0 in float32 for steps above 2e-7."""


@dataclass(frozen=True)
class Scan:
    """What goes into the scan of one block.

    delta, x: [rows, time, channels], steps already positive. a_log: [channels, states]. b, c: [rows, time, states], or
    [rows, time, groups, states] where each of so many equal groups of channels has its own.
    """

    delta: Float[Tensor, "rows time channels"]
    a_log: Float[Tensor, "channels states"]
    b: Float[Tensor, "rows time *groups states"]
    c: Float[Tensor, "rows time *groups states"]
    x: Float[Tensor, "rows time channels"]

    @property
    def length(self) -> int:
        """Steps of time."""
        return self.delta.shape[1]

    def decay(self, step: int, a_log: Float[Tensor, "channels states"] | None = None) -> Float[Tensor, "rows channels states"]:
        """exp(delta_t A) of one step."""
        rates = -(self.a_log if a_log is None else a_log).exp()
        return (self.delta[:, step, :, None] * rates).exp()

    def read(self, step: int) -> Float[Tensor, "rows *channels states"]:
        """c_t, with a dimension for the channels."""
        return self._spread(self.c[:, step])

    def entering(self, step: int) -> Float[Tensor, "rows channels states"]:
        """delta_t x_t b_t."""
        return (self.delta[:, step] * self.x[:, step])[..., None] * self._spread(self.b[:, step])

    def _spread(self, part: Tensor) -> Tensor:
        return part[:, None] if part.ndim == 2 else part.repeat_interleave(len(self.a_log) // part.shape[1], 1)

    def walk(self) -> Iterator[tuple[int, Float[Tensor, "rows channels states"], Float[Tensor, "rows channels states"]]]:
        """(t, decay_t, h_{t-1}) of every step: the state that enters it."""
        hidden = torch.zeros(self.delta.shape[0], *self.a_log.shape, dtype=self.delta.dtype, device=self.delta.device)
        for step in range(self.length):
            decay = self.decay(step)
            yield step, decay, hidden
            hidden = decay * hidden + self.entering(step)

    def output(self, a_log: Float[Tensor, "channels states"] | None = None) -> Float[Tensor, "rows time channels"]:
        """y, with other decays where `a_log` is given."""
        hidden, out = torch.zeros(()), []
        for step in range(self.length):
            hidden = self.decay(step, a_log) * hidden + self.entering(step)
            out.append((hidden * self.read(step)).sum(-1))
        return torch.stack(out, 1)


def masked(a_log: Float[Tensor, "..."], gone: Bool[Tensor, "..."], mode: Mode) -> Float[Tensor, "..."]:
    """A_log with what is gone switched off.

    unit_decay: A_log = 0, hence A = -1: the state stays, with the decay exp(-delta) that costs no parameter. memoryless: it keeps nothing
    from one step to the next, h_t = delta_t x_t b_t.
    """
    return a_log.masked_fill(gone, 0.0 if mode == "unit_decay" else FORGETS)


def removal_errors(scan: Scan, mode: Mode, channels_per_head: int = 0) -> Float[Tensor, "channels states"]:
    """What y loses when one entry of A_log alone is switched off: the sum over rows and steps of the squared change.

    channels_per_head: where one decay stands for this many channels with all of their states (Mamba-2), the errors of whole heads,
    [heads, 1].
    """
    everything = torch.ones_like(scan.a_log, dtype=torch.bool)
    other = masked(scan.a_log, everything, mode)
    error = torch.zeros_like(scan.a_log, dtype=torch.float64)
    moved = torch.zeros(())
    for step, decay, hidden in scan.walk():
        # The difference of both states follows a recurrence of its own, in which what enters cancels.
        changed = scan.decay(step, other)
        moved = changed * moved + (decay - changed) * hidden
        part = moved * scan.read(step)
        if channels_per_head:
            part = part.sum(-1, keepdim=True)
        error += part.square().sum(0)
    if channels_per_head:
        return error[:, :1].reshape(-1, channels_per_head).sum(1, keepdim=True)
    return error


def time_weights(length: int, kind: TimeWeights, exponent: float = 1.0) -> Float[Tensor, "time"]:
    """How much each step counts, adding up to 1.

    power: (t + 1)^-exponent. geometric: 0.9^t. linear: falling towards 0. window: the first quarter only.
    """
    steps = torch.arange(length, dtype=torch.float64)
    weights = {
        "power": (steps + 1) ** -exponent,
        "geometric": 0.9**steps,
        "linear": length - steps,
        "window": (steps < max(1.0, length / 4)).to(torch.float64),
        "uniform": torch.ones_like(steps),
    }[kind]
    return weights / weights.sum()


def weighted_scores(scan: Scan, kind: TimeWeights = "power", exponent: float = 1.0) -> Float[Tensor, "channels states"]:
    """sum over t of w_t (sum over rows of decay_t)^2 (sum over rows of h_{t-1}^2), as the current public code has it."""
    weights = time_weights(scan.length, kind, exponent)
    score = torch.zeros_like(scan.a_log, dtype=torch.float64)
    for step, decay, hidden in scan.walk():
        score += weights[step].to(score.device) * decay.sum(0).square() * hidden.square().sum(0)
    return score


def votes(scan: Scan, gone: int) -> Int[Tensor, "channels states"]:
    """How many steps find an entry among the `gone` least of A_log^2 (sum over rows of h_{t-1}^2), as first published."""
    count = torch.zeros_like(scan.a_log, dtype=torch.long)
    for _, _, hidden in scan.walk():
        energy = scan.a_log.square() * hidden.square().sum(0)
        count += ~keep_per_row(energy.reshape(1, -1), energy.numel() - gone).reshape(energy.shape)
    return count


def state_votes(scan: Scan, gone: int) -> Int[Tensor, "states"]:
    """How many steps find a place among the `gone` whose sum over channels of A_log^2 h_{t-1}^2 is least, as published."""
    count = torch.zeros(scan.a_log.shape[1], dtype=torch.long)
    for _, _, hidden in scan.walk():
        energy = (scan.a_log.square() * hidden.square().sum(0)).sum(0)
        count += ~keep_per_row(energy[None], energy.numel() - gone)[0]
    return count


def state_errors(scan: Scan) -> Float[Tensor, "states"]:
    """What y loses when one place of the state is removed from all channels: the sum of (c_t[n] h_t[d, n])^2."""
    error = torch.zeros(scan.a_log.shape[1], dtype=torch.float64)
    for step, decay, hidden in scan.walk():
        error += ((decay * hidden + scan.entering(step)) * scan.read(step)).square().sum((0, 1))
    return error
