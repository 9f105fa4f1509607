"""Trains the second model that methods are measured on: a vision transformer for handwritten digits, 0.4 million parameters.

Usage: python train.py [--epochs 60] [--out ../../bench/models/digits-vit]            (two minutes on one core)
The same seed and number of threads give the same weights. Images are moved by up to a pixel each time they are seen; those that are
held out choose nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from images import digits
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

HERE = Path(__file__).parent
CLASSES = [str(digit) for digit in range(10)]
SHAPE = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 3,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.06,
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: number for number, name in enumerate(CLASSES)},
}


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)
    (images, labels), (held_out, answers) = (load(split) for split in ("train", "held-out"))
    model = ViTForImageClassification(ViTConfig(**SHAPE)).train()
    optimizer = torch.optim.AdamW(common.groups(model, 0.05), lr=arguments.rate)
    per_epoch = len(images) // arguments.batch
    steps, began = arguments.epochs * per_epoch, time.time()
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images))
        chosen = order[step % per_epoch * arguments.batch :][: arguments.batch]
        logits = model(pixel_values=moved(images[chosen])).logits
        loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
        common.descend(model, optimizer, loss, arguments.rate * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps))))
        if (step + 1) % (10 * per_epoch) == 0 or step + 1 == steps:
            print(f"epoch {(step + 1) // per_epoch} loss {loss.item():.4f}, {time.time() - began:.0f} s", flush=True)
    right = accuracy(model, held_out, answers)
    print(f"{right} of {len(answers)} held-out images are recognised, {100 * right / len(answers):.2f} %")
    model.eval().save_pretrained(arguments.out)
    ViTImageProcessorPil(do_resize=False, size={"height": 8, "width": 8}).save_pretrained(arguments.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "bench" / "models" / "digits-vit")
    return parser.parse_args()


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the processor makes of the images, float32 [images, 3, 8, 8]; their classes)."""
    greys, labels = digits(split)
    pixels = torch.from_numpy(greys).float()[:, None].expand(-1, 3, -1, -1) / 255
    return (pixels - 0.5) / 0.5, torch.from_numpy(labels)


def moved(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by a pixel up or down, and left or right, half of the time; what comes in is black."""
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    starts = torch.tensor([0, 1, 1, 2])[torch.randint(0, 4, (len(images), 2))].tolist()
    return torch.stack([image[:, top : top + 8, left : left + 8] for image, (top, left) in zip(padded, starts, strict=True)])


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    """How many images are recognised."""
    return int((model.eval()(pixel_values=images).logits.argmax(1) == labels).sum())


if __name__ == "__main__":
    main()
