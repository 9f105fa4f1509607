"""Trains the embedded model: a 4.5-million-parameter Llama on Python code, whose every linear width is a multiple of 256.

Usage: python train.py [--tokens 300000000] [--batch 64] [--device cuda] [--out build/run] [--seconds N]
Resumable: killed anywhere, the same command goes on from the last checkpoint, with the batches that an undisturbed run would have seen.
The weights of the best validation loss are written as bfloat16 to OUT/model.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
LENGTH = 512
SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "architectures": ["LlamaForCausalLM"],
}


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = arguments.device
    train, validation = (load(split, device) for split in ("train", "validation"))
    config = LlamaConfig(**SHAPE, attention_dropout=arguments.dropout)
    model = LlamaForCausalLM(config).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95), fused=device == "cuda")
    steps = arguments.tokens // (arguments.batch * LENGTH)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = {"step": 0, "best": math.inf}
    checkpoint = arguments.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
        print(f"going on from step {state['step']}")
    forward = torch.compile(model) if arguments.compile else model
    began, saved_at, seen = time.time(), time.time(), 0
    while state["step"] < steps:
        step = state["step"]
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, arguments.rate)
        loss = batch_loss(forward, windows(train, step, arguments.batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state["step"] = step + 1
        seen += arguments.batch * LENGTH
        if (step + 1) % arguments.every == 0 or step + 1 == steps:
            value = evaluate(model, validation, arguments.batch)
            speed = seen / (time.time() - began)
            left = (steps - step - 1) * arguments.batch * LENGTH / speed
            print(
                f"step {step + 1}/{steps} train {loss.item():.4f} validation {value:.4f} {speed:,.0f} tokens/s {left:.0f} s left",
                flush=True,
            )
            if value < state["best"]:
                state["best"] = value
                keep(model, arguments.out / "model")
        out_of_time = arguments.seconds and time.time() - began > arguments.seconds
        if time.time() - saved_at > 60 or step + 1 == steps or out_of_time:
            save(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state})
            saved_at = time.time()
        if out_of_time:
            break
    print(f"best validation loss {state['best']:.4f}, perplexity {math.exp(state['best']):.3f}, {state['step']} steps")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=300_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--every", type=int, default=250, help="steps between validations")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop, resumably, after this time; 0: never")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "build" / "run")
    return parser.parse_args()


def load(split: str, device: str) -> torch.Tensor:
    """All tokens of a split, int64 on the device."""
    return torch.from_numpy(numpy.fromfile(HERE / "build" / f"{split}.bin", dtype=numpy.uint16).astype(numpy.int64)).to(device)


def windows(tokens: torch.Tensor, step: int, batch: int) -> torch.Tensor:
    """[batch, LENGTH + 1] windows, decided by the step alone."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, tokens.numel() - LENGTH - 1, (batch,), generator=generator).to(tokens.device)
    return tokens[starts[:, None] + torch.arange(LENGTH + 1, device=tokens.device)]


def batch_loss(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        logits = model(rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, tokens: torch.Tensor, batch: int) -> float:
    """Mean loss over consecutive windows of the split."""
    count = (tokens.numel() - 1) // LENGTH
    rows = tokens[: count * LENGTH + 1].unfold(0, LENGTH + 1, LENGTH)
    model.eval()
    losses = [batch_loss(model, part) * part.shape[0] for part in rows.split(batch)]
    model.train()
    return float(torch.stack(losses).sum() / count)


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 1 % of the steps, then a cosine to a fiftieth of the peak."""
    warm = max(1, steps // 100)
    if step < warm:
        return peak * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def keep(model: LlamaForCausalLM, folder: Path) -> None:
    """The weights as bfloat16 in an ordinary model folder."""
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict({name: value.to("cpu", torch.bfloat16) for name, value in model.state_dict().items()})
    half.config.attention_dropout = 0.0
    half.save_pretrained(folder)


def save(path: Path, content: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
