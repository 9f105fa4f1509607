"""What the scripts that train small models have in common: windows of a text, the rate, the weights that decay, and a loop that goes on
where it was stopped. Files are whole or absent."""

from __future__ import annotations

import argparse
import copy
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

LEAST = 0.02
"""The rate at the end, as a part of the peak."""


# -- text --------------------------------------------------------------------------------------------------------------


def load(file: Path, device: str = "cpu") -> Tensor:
    """All tokens of a split, int64 on the device."""
    return torch.from_numpy(numpy.fromfile(file, dtype=numpy.uint16).astype(numpy.int64)).to(device)


def windows(tokens: Tensor, step: int, batch: int, length: int) -> Tensor:
    """[batch, length + 1] windows, decided by the step alone."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, tokens.numel() - length - 1, (batch,), generator=generator)
    return cut(tokens, starts, length)


def cut(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    """[len(starts), length + 1] windows that begin at these places."""
    return tokens[starts.to(tokens.device)[:, None] + torch.arange(length + 1, device=tokens.device)]


# -- optimization ------------------------------------------------------------------------------------------------------


def groups(model: torch.nn.Module, decay: float, never: str = "") -> list[dict[str, Any]]:
    """Parameters for an optimizer: matrices decay, vectors and what is called `never` do not."""
    decays = {name: p.ndim > 1 and not (never and name.endswith(never)) for name, p in model.named_parameters()}
    named = dict(model.named_parameters())
    return [
        {"params": [named[name] for name, yes in decays.items() if yes], "weight_decay": decay},
        {"params": [named[name] for name, yes in decays.items() if not yes], "weight_decay": 0.0},
    ]


def rate(step: int, steps: int, peak: float, warm: int) -> float:
    """Linear warm-up over one of `warm` parts of the steps, then a cosine to a fiftieth of the peak."""
    first = max(1, steps // warm)
    if step < first:
        return peak * (step + 1) / first
    share = (step - first) / max(1, steps - first)
    return peak * (LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * share)))


def descend(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, now: float) -> None:
    """One step at the rate `now`, its gradient 1 long at most."""
    for group in optimizer.param_groups:
        group["lr"] = now
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


# -- files -------------------------------------------------------------------------------------------------------------


def keep(model: Any, folder: Path, *beside: Any, **settings: Any) -> None:
    """The weights as bfloat16 in an ordinary model folder; the old one stays until the new one is whole.

    beside: what is saved with them, as a tokenizer. settings: of the config, where they differ from those of training.
    """
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    half = type(model)(copy.deepcopy(model.config)).to(torch.bfloat16)
    half.load_state_dict({name: value.to("cpu", torch.bfloat16) for name, value in model.state_dict().items()})
    half.config.update(settings)
    for part in (half, *beside):
        part.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def save(path: Path, content: dict[str, Any]) -> None:
    """A checkpoint."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


# -- the loop ----------------------------------------------------------------------------------------------------------


def parser(tokens: int, batch: int, peak: float, every: int, out: Path) -> argparse.ArgumentParser:
    """The settings that all loops have, with these defaults."""
    found = argparse.ArgumentParser()
    found.add_argument("--tokens", type=int, default=tokens)
    found.add_argument("--batch", type=int, default=batch)
    found.add_argument("--rate", type=float, default=peak)
    found.add_argument("--every", type=int, default=every, help="steps between validations")
    found.add_argument("--seconds", type=float, default=0.0, help="stop, resumably, after this time; 0: never")
    found.add_argument("--out", type=Path, default=out)
    return found


@dataclass
class Loop:
    """Training that goes on where it was stopped, with the batches that an undisturbed run would have seen.

    arguments: of `parser`. length: tokens of a window. warm: see `rate`. between: seconds between checkpoints. loss: of the windows of a
    step. validate: the loss that judges. kept: writes the model to a folder: whenever it is judged best, or where `best` is False, with
    every checkpoint.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    arguments: argparse.Namespace
    length: int
    warm: int
    between: float
    loss: Callable[[int], Tensor]
    validate: Callable[[], float]
    kept: Callable[[Path], None]
    best: bool = True

    def run(self) -> dict[str, Any]:
        """Train to the end, or as long as there is time; `step` that was reached, and the `best` validation."""
        arguments = self.arguments
        steps = arguments.tokens // (arguments.batch * self.length)
        arguments.out.mkdir(parents=True, exist_ok=True)
        state = self._resumed()
        began, saved, first = time.time(), time.time(), state["step"]
        while state["step"] < steps:
            step = state["step"]
            loss = self.loss(step)
            descend(self.model, self.optimizer, loss, rate(step, steps, arguments.rate, self.warm))
            state["step"] = step = step + 1
            if step % arguments.every == 0 or step == steps:
                speed = (step - first) * arguments.batch * self.length / (time.time() - began)
                self._judge(state, loss.item(), steps, speed)
            out_of_time = arguments.seconds and time.time() - began > arguments.seconds
            if time.time() - saved > self.between or step == steps or out_of_time:
                saved = self._save(state)
            if out_of_time:
                break
        return state

    @property
    def checkpoint(self) -> Path:
        """Where training goes on from."""
        return self.arguments.out / "checkpoint.pt"

    def _resumed(self) -> dict[str, Any]:
        if not self.checkpoint.exists():
            return {"step": 0, "best": math.inf}
        saved = torch.load(self.checkpoint, map_location=next(self.model.parameters()).device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        print(f"going on from step {saved['state']['step']}")
        return saved["state"]

    def _judge(self, state: dict[str, Any], loss: float, steps: int, speed: float) -> None:
        value = self.validate()
        left = (steps - state["step"]) * self.arguments.batch * self.length / speed
        told = f"train {loss:.4f} validation {value:.4f} {speed:,.0f} tokens/s {left:.0f} s left"
        print(f"step {state['step']}/{steps} {told}", flush=True)
        if value < state["best"]:
            state["best"] = value
            if self.best:
                self.kept(self.arguments.out / "model")

    def _save(self, state: dict[str, Any]) -> float:
        """Write a checkpoint; the time."""
        save(self.checkpoint, {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "state": state})
        if not self.best:
            self.kept(self.arguments.out / "model")
        return time.time()
