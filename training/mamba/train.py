"""Trains a small Mamba on Python code: 0.7 million parameters, 4 blocks, 16 states a channel, the tokenizer of the embedded model.

Usage: python ../embedded/prepare.py ../../src/thrifty/data/pycode/model; python train.py [--tokens 1200000] [--out build/run] [--seconds N]
For one core: the scan and its gradient are compiled from scan.c beside this file (gcc).
Resumable: killed anywhere, the same command goes on from the last checkpoint, with the batches that an undisturbed run would have seen.
The weights at the end, and at each checkpoint before, are written as bfloat16 to OUT/model.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import numpy
import torch
from torch.nn import functional
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

HERE = Path(__file__).parent
TEXTS = HERE.parent / "embedded" / "build"
TOKENIZER = HERE.parent.parent / "src" / "thrifty" / "data" / "pycode" / "model"
LENGTH = 256
SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "state_size": 16,
    "num_hidden_layers": 4,
    "expand": 2,
    "time_step_rank": 8,
    "tie_word_embeddings": True,
    "residual_in_fp32": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "architectures": ["MambaForCausalLM"],
}


class Scan(torch.autograd.Function):
    """y_t = <c_t, h_t>, h_t = exp(delta_t A) h_{t-1} + delta_t x_t b_t, as scan.c computes it.

    delta, x: [rows, channels, time]; rates: [channels, 16]; b, c: [rows, time, 16].
    """

    @staticmethod
    def forward(context, *inputs):
        inputs = [part.contiguous() for part in inputs]
        context.save_for_backward(*inputs)
        y = torch.empty_like(inputs[0])
        call("forward", *inputs, y)
        return y

    @staticmethod
    def backward(context, slope):
        inputs = context.saved_tensors
        gradients = [torch.zeros_like(part) for part in inputs]
        call("backward", slope.contiguous(), *inputs, *gradients)
        return tuple(gradients)


def call(name: str, *tensors: torch.Tensor) -> None:
    """Call a function of scan.c; the first tensor is [rows, channels, time]."""
    room = torch.empty(2 * tensors[0].shape[-1] * SHAPE["state_size"])
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*tensors, room)]
    getattr(compiled(), name)(*pointers, *map(ctypes.c_int, tensors[0].shape))


@cache
def compiled() -> ctypes.CDLL:
    """scan.c, compiled for this machine."""
    library = HERE / "build" / "scan.so"
    library.parent.mkdir(exist_ok=True)
    command = ["gcc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-o", str(library), str(HERE / "scan.c"), "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def mix(mixer, hidden):
    """What MambaMixer.forward computes, with the scan above."""
    inner, gate = mixer.in_proj(hidden).chunk(2, dim=-1)
    inner = functional.silu(mixer.conv1d(inner.mT)[..., : inner.shape[1]])
    rank, size = mixer.time_step_rank, mixer.ssm_state_size
    step, b, c = mixer.x_proj(inner.mT).split([rank, size, size], dim=-1)
    delta = functional.softplus(mixer.dt_proj(step)).mT
    y = Scan.apply(delta, inner, -mixer.A_log.exp(), b, c) + inner * mixer.D[:, None]
    return mixer.out_proj(y.mT * functional.silu(gate))


def batch_loss(model, rows):
    """Mean loss of the next token over windows [batch, LENGTH + 1]."""
    hidden = model.backbone.embeddings(rows[:, :-1])
    for layer in model.backbone.layers:
        hidden = hidden + mix(layer.mixer, layer.norm(hidden))
    logits = model.lm_head(model.backbone.norm_f(hidden))
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    train, validation = (load(split) for split in ("train", "validation"))
    model = MambaForCausalLM(MambaConfig(**SHAPE))
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("A_log")]
    plain = [p for name, p in model.named_parameters() if p.ndim <= 1 or name.endswith("A_log")]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95))
    steps = arguments.tokens // (arguments.batch * LENGTH)
    arguments.out.mkdir(parents=True, exist_ok=True)
    done, checkpoint = 0, arguments.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
        print(f"going on from step {done}")
    began, saved_at, first = time.time(), time.time(), done
    while done < steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(done, steps, arguments.rate)
        loss = batch_loss(model, windows(train, done, arguments.batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        if done % arguments.every == 0 or done == steps:
            speed = (done - first) * arguments.batch * LENGTH / (time.time() - began)
            value = evaluate(model, validation, arguments.batch)
            print(f"step {done}/{steps} train {loss.item():.4f} validation {value:.4f} {speed:,.0f} tokens/s", flush=True)
        out_of_time = arguments.seconds and time.time() - began > arguments.seconds
        if time.time() - saved_at > 120 or done == steps or out_of_time:
            save(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done})
            keep(model, arguments.out / "model")
            saved_at = time.time()
        if out_of_time:
            break


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=1_200_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="steps between validations")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop, resumably, after this time; 0: never")
    parser.add_argument("--out", type=Path, default=HERE / "build" / "run")
    return parser.parse_args()


def load(split: str) -> torch.Tensor:
    return torch.from_numpy(numpy.fromfile(TEXTS / f"{split}.bin", dtype=numpy.uint16).astype(numpy.int64))


def windows(tokens: torch.Tensor, step: int, batch: int) -> torch.Tensor:
    """[batch, LENGTH + 1] windows, decided by the step alone."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, tokens.numel() - LENGTH - 1, (batch,), generator=generator)
    return tokens[starts[:, None] + torch.arange(LENGTH + 1)]


@torch.no_grad()
def evaluate(model, tokens: torch.Tensor, batch: int) -> float:
    """Mean loss over a few windows, evenly spaced over the split."""
    starts = torch.linspace(0, tokens.numel() - LENGTH - 2, 4 * batch).long()
    rows = tokens[starts[:, None] + torch.arange(LENGTH + 1)]
    return float(torch.stack([batch_loss(model, part) for part in rows.split(batch)]).mean())


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, then a cosine to a fiftieth of the peak."""
    warm = max(1, steps // 50)
    if step < warm:
        return peak * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def keep(model: MambaForCausalLM, folder: Path) -> None:
    """An ordinary model folder with its tokenizer; the old one stays until the new one is whole."""
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    half = MambaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict({name: value.to(torch.bfloat16) for name, value in model.state_dict().items()})
    half.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def save(path: Path, content: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
