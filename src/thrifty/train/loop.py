"""One loop for everything that is trained: Adam under a schedule, exact to go on with after a stop at any moment.

    theta <- theta - r_t m_t / (sqrt(v_t) + eps),   r_t from 0 to `rate` over the first part, then along a cosine to final * rate

An objective may give each parameter a rate of its own, `rate` times a factor that is found anew at intervals. Rows are drawn anew for each
step from the seed and the number of the step, so the order depends on nothing else. Parameters, moments, factors and losses are written at
intervals, whole or not at all; a run that was stopped goes on from the last of these and ends with the same bytes.
Source: Kingma and Ba (2014), arXiv 1412.6980; the schedule is that of Loshchilov and Hutter (2016), arXiv 1608.03983.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import RunError
from thrifty.base.store import write_atomic

SAVED = 60.0
"""Seconds between two states on disk, at least."""

BETAS = (0.9, 0.99)

SEEDS = 1 << 63
"""Generators take smaller seeds than this."""


class Objective(Protocol):
    """What is trained. Its parameters are leaves that require gradients; their names stand in the state on disk."""

    def parameters(self) -> Mapping[str, Tensor]:
        """Everything that is trained, by name."""
        ...

    def loss(self, rows: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
        """The mean loss of these rows, differentiable in the parameters."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """What `settle` changes, in place, besides the parameters, by name."""
        ...

    def settle(self) -> Mapping[str, Bool[Tensor, "*shape"]]:
        """Called after every step: bring parameters back to where they may be. Returns, by name of the parameter, the entries whose moments
        start again from zero, since they now stand at another point."""
        ...

    def factors(self) -> Mapping[str, float]:
        """By how much the rate of each parameter is multiplied, by its name; 1 where none is given. Asked only where `Schedule.every` is
        above zero."""
        ...


@dataclass(frozen=True)
class Schedule:
    """steps: of the optimizer, `batch` rows each. rate: the largest. warm_up: share of the steps in which it rises. final: what it ends at,
    as a share. clip: largest norm of all gradients together. every: steps between two questions for the factors of the rates, from the
    first step on; 0 asks never."""

    steps: int
    batch: int
    rate: float
    warm_up: float = 0.05
    final: float = 0.1
    clip: float = 1.0
    every: int = 0

    def at(self, step: int) -> float:
        """The rate of step number `step`, counted from 0."""
        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        share = (step - rising) / max(1, self.steps - rising)
        return self.rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share)))


def drawn(rows: int, batch: int, step: int, seed: int) -> Int[Tensor, "batch"]:
    """The rows of one step: each of them once before any comes again."""
    first = step * batch
    order = [
        torch.randperm(rows, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % SEEDS))
        for epoch in range(first // rows, (first + batch - 1) // rows + 1)
    ]
    start = first - first // rows * rows
    return torch.cat(order)[start : start + batch]


def train(objective: Objective, rows: int, schedule: Schedule, place: Path, seed: int, *, title: str = "training") -> list[float]:
    """Train in place; returns the loss of every step.

    rows: how many there are to draw from. place: the file of the state, which a stopped run goes on from; the caller removes it.
    Raises RunError when the loss is no finite number.
    """
    parameters = dict(objective.parameters())
    groups = [[tensor] for tensor in parameters.values()] if schedule.every else [[*parameters.values()]]
    optimizer = torch.optim.Adam([{"params": group} for group in groups], lr=schedule.rate, betas=BETAS)
    state = objective.state()
    losses, factors = _resume(place, parameters, state, optimizer)
    batch, saved = min(schedule.batch, rows), time.monotonic()
    with events.task(title, schedule.steps, done=len(losses)) as advance:
        for step in range(len(losses), schedule.steps):
            advance(step, "")
            if schedule.every and step % schedule.every == 0:
                with torch.no_grad():
                    factors = dict(objective.factors())
            with torch.enable_grad():
                loss = objective.loss(drawn(rows, batch, step, seed))
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            now = float(loss.detach())
            if not math.isfinite(now):
                raise RunError(f"the loss of step {step + 1} of {title} is {now}; a smaller rate may help")
            for tensor, gradient in zip(parameters.values(), found, strict=True):
                tensor.grad = torch.zeros_like(tensor) if gradient is None else gradient
            torch.nn.utils.clip_grad_norm_(parameters.values(), schedule.clip)
            for name, group in zip(parameters, optimizer.param_groups, strict=False):  # one group stands for all where none has a factor
                group["lr"] = schedule.at(step) * factors.get(name, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, moved in objective.settle().items():
                    _forget(optimizer, parameters[name], moved)
            losses.append(now)
            if step + 1 == schedule.steps or time.monotonic() - saved > SAVED:
                _save(place, parameters, state, optimizer, losses, factors)
                saved = time.monotonic()
        advance(schedule.steps, "")
    return losses


def _forget(optimizer: torch.optim.Optimizer, parameter: Tensor, moved: Bool[Tensor, "*shape"]) -> None:
    """Both moments of these entries from zero; those of the others as they are."""
    for moment in ("exp_avg", "exp_avg_sq"):
        optimizer.state[parameter][moment].masked_fill_(moved, 0)


def _save(
    place: Path,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    factors: Mapping[str, float],
) -> None:
    tensors = {f"state.{name}": tensor for name, tensor in state.items()}
    for name, tensor in parameters.items():
        moments = optimizer.state[tensor]
        tensors |= {f"parameter.{name}": tensor.detach(), f"mean.{name}": moments["exp_avg"], f"square.{name}": moments["exp_avg_sq"]}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    told = json.dumps({"losses": losses, "factors": factors})
    write_atomic(place, lambda path: save_file(tensors, path, metadata={"told": told}))


def _resume(
    place: Path, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[list[float], dict[str, float]]:
    """Bring everything to where a stopped run left it; returns (the losses so far, the factors of the rates)."""
    if not place.exists():
        return [], {}
    with safe_open(place, "pt") as file:
        told = json.loads(file.metadata()["told"])
        losses = [float(loss) for loss in told["losses"]]
        for name, tensor in state.items():
            tensor.copy_(file.get_tensor(f"state.{name}"))
        for name, tensor in parameters.items():
            with torch.no_grad():
                tensor.copy_(file.get_tensor(f"parameter.{name}"))
            optimizer.state[tensor] = {
                "step": torch.tensor(float(len(losses))),
                "exp_avg": file.get_tensor(f"mean.{name}").to(tensor.device),
                "exp_avg_sq": file.get_tensor(f"square.{name}").to(tensor.device),
            }
    events.note(f"{len(losses)} steps were already done")
    return losses, told["factors"]
