"""Rows for a diffusion transformer from nothing but the model: what it sees while it turns noise into pictures of each class.

x_T ~ N(0, 1), and DDIM without noise from there: four latents on the way, with their time steps and classes, are rows. The schedule is that
of `scheduler_config.json` beside the weights or in the `scheduler` folder of the pipeline, else the one that such models are trained with:
betas from 0.0001 to 0.02 in a thousand even steps. The whole model is in memory for that.
Sources: Peebles and Xie (2022), arXiv 2212.09748; Song, Meng and Ermon (2020), arXiv 2010.02502.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.memory import return_free_memory
from thrifty.data import Rows
from thrifty.data.embedded import Purpose
from thrifty.data.load import SAMPLES
from thrifty.models import Source
from thrifty.runtime.load import load_source

MODEL = "DiTTransformer2DModel"
"""The class whose only conditions are time steps and classes."""

STEPS = 16
"""Time steps of a trajectory."""

TAKEN = 4
"""Rows that are taken of each, at other steps of the next."""

UNCONDITIONAL = 0.1
"""The share of trajectories without a class, as in training."""

_SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
_APART = 1 << 20


def trajectory_rows(source: Source, purpose: Purpose, samples: int | None, seed: int, batch: int = 8) -> Rows:
    """Rows of latents, time steps and classes: 128 to calibrate on and 64 to judge on, from other noise.

    Raises InputError for models that are conditioned on more than a class, and for a schedule that diffusers does not take.
    """
    if source.anatomy.architecture != MODEL:
        words = f"{source.anatomy.architecture} is conditioned on more than a class, which is not made up here"
        raise InputError(f"{source.folder}: {words}; give rows as Rows.of({{...}}), with what its forward takes.")
    count = SAMPLES[purpose] if samples is None else samples
    scheduler, config = _scheduler(source), source.config
    drawn = torch.Generator().manual_seed(seed + (_APART if purpose == "evaluation" else 0))
    pictures = -(-count // TAKEN)
    latents = torch.randn(pictures, config.in_channels, config.sample_size, config.sample_size, generator=drawn)
    classes = torch.randint(0, config.num_embeds_ada_norm, (pictures,), generator=drawn)
    classes[torch.rand(pictures, generator=drawn) < UNCONDITIONAL] = config.num_embeds_ada_norm
    model = load_source(source, torch.float32)
    found = [_follow(model, scheduler, *part) for part in zip(latents.split(batch), classes.split(batch), strict=True)]
    del model
    return_free_memory()
    inputs = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    numbers = torch.arange(count)
    chosen = numbers // TAKEN * STEPS + (numbers % TAKEN * (STEPS // TAKEN) + numbers // TAKEN) % STEPS
    return Rows(
        {name: tensor[chosen] for name, tensor in inputs.items()}, tuple(range(count)), f"{pictures} trajectories of the model itself"
    )


@torch.inference_mode()
def _follow(model: nn.Module, scheduler: Any, latents: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Every latent on the way from noise, with its time step and class."""
    scheduler.set_timesteps(STEPS)
    seen: list[dict[str, Tensor]] = []
    with events.task("denoising", STEPS) as advance:
        for number, step in enumerate(scheduler.timesteps):
            rows = {"hidden_states": latents, "timestep": step.repeat(len(latents)), "class_labels": classes}
            seen.append(rows)
            noise = model(**rows).sample[:, : latents.shape[1]]  # the rest is its variance
            latents = scheduler.step(noise, step, latents).prev_sample
            advance(number + 1, "")
    return {name: torch.stack([rows[name] for rows in seen], dim=1).flatten(0, 1).clone() for name in seen[0]}


def _scheduler(source: Source) -> Any:
    from diffusers import DDIMScheduler

    places = (source.folder / "scheduler_config.json", source.folder.parent / "scheduler" / "scheduler_config.json")
    file = next((place for place in places if place.is_file()), None)
    try:
        settings = _SCHEDULE if file is None else json.loads(file.read_text())
        return DDIMScheduler.from_config(settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"{file} is no schedule that diffusers takes ({' '.join(str(error).split())}); download it again.") from None
