"""Trains a small Mamba on Python code: 0.7 million parameters, 4 blocks, 16 states a channel, the tokenizer of the embedded model.

Usage: python ../embedded/prepare.py ../../src/thrifty/data/pycode/model; python train.py [--tokens 1200000] [--out build/run] [--seconds N]
For one core: the scan and its gradient are compiled from scan.c beside this file (gcc).
Resumable: killed anywhere, the same command goes on from the last checkpoint, with the batches that an undisturbed run would have seen.
The weights at the end, and at each checkpoint before, are written as bfloat16 to OUT/model.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

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
    parser = common.parser(tokens=1_200_000, batch=8, peak=4e-3, every=100, out=HERE / "build" / "run")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    train, validation = (common.load(TEXTS / f"{split}.bin") for split in ("train", "validation"))
    model = MambaForCausalLM(MambaConfig(**SHAPE))
    optimizer = torch.optim.AdamW(common.groups(model, 0.1, never="A_log"), lr=arguments.rate, betas=(0.9, 0.95))
    common.Loop(
        model,
        optimizer,
        arguments,
        length=LENGTH,
        warm=50,
        between=120,
        loss=lambda step: batch_loss(model, common.windows(train, step, arguments.batch, LENGTH)),
        validate=partial(evaluate, model, validation, arguments.batch),
        kept=lambda folder: common.keep(model, folder, AutoTokenizer.from_pretrained(TOKENIZER)),
        best=False,
    ).run()


@torch.no_grad()
def evaluate(model, tokens: torch.Tensor, batch: int) -> float:
    """Mean loss over a few windows, evenly spaced over the split."""
    rows = common.cut(tokens, torch.linspace(0, tokens.numel() - LENGTH - 2, 4 * batch).long(), LENGTH)
    return float(torch.stack([batch_loss(model, part) for part in rows.split(batch)]).mean())


if __name__ == "__main__":
    main()
