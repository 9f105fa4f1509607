"""Trains the diffusion transformer that methods are measured on: handwritten digits of 8 x 8 pixels by class, 0.8 million parameters.

Usage: python train.py [--steps 1500] [--out ../../bench/models/digits-dit]            (a few minutes on one core)
Every step draws its images, noise and times from its own seed, and the state is kept in FOLDER/training.pt of --work every minute: a run
that was stopped goes on from there, and ends with the same weights. Images that are held out choose nothing.

    loss = mean || e - model(sqrt(a_t) x + sqrt(1 - a_t) e, t, class) ||^2,   a_t = (1 - beta_1) .. (1 - beta_t)

beta rises evenly from 0.0001 to 0.02 in 1,000 steps. Each class is left out in a tenth of the rows. What is saved is the moving average of
the weights, in bfloat16.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "digits"))
from images import digits  # noqa: E402

SHAPE = {"num_attention_heads": 4, "attention_head_dim": 24, "num_layers": 4, "sample_size": 8, "patch_size": 2, "in_channels": 1}
CLASSES, TIMES = 10, 1000
SCHEDULE = {"num_train_timesteps": TIMES, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
KEPT = torch.cumprod(1 - torch.linspace(0.0001, 0.02, TIMES), 0)
AVERAGE, WARM_UP = 0.999, 100


def main() -> None:
    arguments = parse()
    images, labels = load("train")
    torch.manual_seed(0)
    model = fresh()
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=0.01, betas=(0.9, 0.99))
    state, step = arguments.work / "training.pt", 0
    if state.exists():
        found = torch.load(state, weights_only=True)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        average, step = found["average"], found["step"]
        print(f"goes on from step {step}", flush=True)
    saved = began = time.time()
    while step < arguments.steps:
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / arguments.steps)))
        drawn = torch.Generator().manual_seed(step)
        chosen = torch.randint(0, len(images), (arguments.batch,), generator=drawn)
        rows, noise = noisy(images[chosen], labels[chosen], drawn)
        rows["class_labels"][torch.rand(arguments.batch, generator=drawn) < 0.1] = CLASSES
        loss = (model(**rows).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            weight = min(AVERAGE, step / (step + 10))
            for name, parameter in model.named_parameters():
                average[name].lerp_(parameter, 1 - weight)
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f}, {time.time() - began:.0f} s", flush=True)
        if time.time() - saved > 60:
            keep(state, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step})
            saved = time.time()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(average[name].to(torch.bfloat16))
    print(f"loss on held-out images: {held_out_loss(model):.4f}")
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    DDIMScheduler(**SCHEDULE).save_config(arguments.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "bench" / "models" / "digits-dit")
    parser.add_argument("--work", type=Path, default=HERE)
    return parser.parse_args()


def fresh() -> DiTTransformer2DModel:
    """A model whose blocks do nothing yet: their gates are zero."""
    # In evaluation mode throughout: in training mode every block would leave out classes of its own.
    model = DiTTransformer2DModel(**SHAPE, num_embeds_ada_norm=CLASSES).eval()
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    for last in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return model


def load(split: str) -> tuple[Tensor, Tensor]:
    """(images float32 [images, 1, 8, 8] from -1 to 1, their classes)."""
    greys, labels = digits(split)
    return torch.from_numpy(greys).float()[:, None] / 120 - 1, torch.from_numpy(labels)


def noisy(images: Tensor, labels: Tensor, drawn: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """(what the model is called with for these images at random times, the noise that it has to find)."""
    times = torch.randint(0, TIMES, (len(images),), generator=drawn)
    noise = torch.randn(images.shape, generator=drawn)
    kept = KEPT[times][:, None, None, None]
    return {"hidden_states": kept.sqrt() * images + (1 - kept).sqrt() * noise, "timestep": times, "class_labels": labels.clone()}, noise


@torch.inference_mode()
def held_out_loss(model: nn.Module) -> float:
    """The loss on the images that were held out, each at one time."""
    rows, noise = noisy(*load("held-out"), torch.Generator().manual_seed(0))
    return float((model(**rows).sample - noise).square().mean())


def keep(file: Path, state: dict[str, object]) -> None:
    """Write it whole or not at all."""
    temporary = file.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
