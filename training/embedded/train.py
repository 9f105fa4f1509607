"""Trains the embedded model: a 4.5-million-parameter Llama on Python code, whose every linear width is a multiple of 256.

Usage: python train.py [--tokens 300000000] [--batch 64] [--device cuda] [--out build/run] [--seconds N]
Resumable: killed anywhere, the same command goes on from the last checkpoint, with the batches that an undisturbed run would have seen.
The weights of the best validation loss are written as bfloat16 to OUT/model.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

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
    parser = common.parser(tokens=300_000_000, batch=64, peak=2e-3, every=250, out=HERE / "build" / "run")
    parser.add_argument("--weight-decay", type=float, default=0.2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = arguments.device
    train, validation = (common.load(HERE / "build" / f"{split}.bin", device) for split in ("train", "validation"))
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=arguments.dropout)).to(device)
    groups = common.groups(model, arguments.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95), fused=device == "cuda")
    forward = torch.compile(model) if arguments.compile else model
    state = common.Loop(
        model,
        optimizer,
        arguments,
        length=LENGTH,
        warm=100,
        between=60,
        loss=lambda step: batch_loss(forward, common.windows(train, step, arguments.batch, LENGTH)),
        validate=partial(evaluate, model, validation, arguments.batch),
        kept=lambda folder: common.keep(model, folder, attention_dropout=0.0),
    ).run()
    print(f"best validation loss {state['best']:.4f}, perplexity {math.exp(state['best']):.3f}, {state['step']} steps")


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


if __name__ == "__main__":
    main()
