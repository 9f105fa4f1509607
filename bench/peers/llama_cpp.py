"""A GGUF file in llama.cpp: its perplexity on given windows, or its speed. Runs in its own environment (bench/environments.sh llama-cpp).

llama_cpp.py perplexity MODEL WINDOWS    every window is read on its own, and the loss is that of each token but the first given those
                                         before it, as `thrifty evaluate` counts it; prints {perplexity, tokens, seconds}; with
                                         --logits writes what it found, with --texts also cuts these and prints {..., ids}
llama_cpp.py speed MODEL                 answers each line on standard input with one round, a prompt read at once and then tokens fed
                                         one by one; prints {prefill_seconds, decode_seconds} for it
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

sys.path.pop(0)  # the folder of this file, which has the name of the package that it needs

import numpy as np
import torch
from llama_cpp import Llama, llama_cpp
from safetensors.torch import load_file, save_file


def keep_plain_buffers() -> None:
    """Let llama.cpp not rearrange weights for the processor: its AMX kernels end with a fault on virtual machines that only claim AMX."""
    defaults = llama_cpp.llama_model_default_params

    def without_extra_buffers() -> llama_cpp.llama_model_params:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_model_default_params = without_extra_buffers


def opened(arguments: argparse.Namespace, context: int, batch: int, all_logits: bool) -> Llama:
    """The model, with room for `context` tokens of which `batch` are read at once."""
    return Llama(
        str(arguments.model), n_ctx=context, n_batch=batch, logits_all=all_logits, verbose=False,
        n_threads=arguments.threads, n_threads_batch=arguments.threads,
    )  # fmt: skip


def row_logits(model: Llama, row: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Logits after each token of a window but the last [tokens - 1, vocabulary], and the seconds that llama.cpp took."""
    start = time.perf_counter()
    model.reset()
    model.eval(row.tolist())
    seconds = time.perf_counter() - start
    return torch.from_numpy(model.scores[: len(row) - 1].copy()), seconds


def perplexity(arguments: argparse.Namespace) -> None:
    windows = load_file(arguments.windows)["input_ids"].to(torch.int64)
    rows, length = windows.shape
    model = opened(arguments, length, length, all_logits=True)
    loss, spent, kept = 0.0, 0.0, []
    for row in windows:
        logits, seconds = row_logits(model, row)
        loss += float(torch.nn.functional.cross_entropy(logits.double(), row[1:], reduction="sum"))
        spent += seconds
        if arguments.logits:
            kept.append(logits)
    if arguments.logits:
        save_file({"logits": torch.stack(kept)}, arguments.logits)
    tokens = rows * (length - 1)
    answer = {"perplexity": math.exp(loss / tokens), "tokens": tokens, "seconds": spent}
    if arguments.texts:
        texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
        answer["ids"] = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
    print(json.dumps(answer))


def speed(arguments: argparse.Namespace) -> None:
    model = opened(arguments, arguments.prompt + arguments.new, arguments.prompt, all_logits=False)
    prompt = np.random.default_rng(0).integers(3, 1000, arguments.prompt).tolist()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        middle = time.perf_counter()
        for token in prompt[: arguments.new - 1]:  # the first new token comes out of the prompt
            model.eval([token])
        stop = time.perf_counter()
        print(json.dumps({"prefill_seconds": middle - start, "decode_seconds": stop - middle}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (perplexity, speed):
        words = commands.add_parser(command.__name__)
        words.set_defaults(command=command)
        words.add_argument("model", type=Path, help="GGUF file")
        words.add_argument("--threads", type=int, default=1)
        words.add_argument("--plain-buffers", action="store_true", help="do not rearrange weights for the processor")
        if command is perplexity:
            words.add_argument("windows", type=Path, help="safetensors file with input_ids: int64 [rows, tokens]")
            words.add_argument("--logits", type=Path, help="safetensors file for the logits, float32 [rows, tokens - 1, vocabulary]")
            words.add_argument("--texts", type=Path, help="JSON file with a list of texts to cut into tokens")
        else:
            words.add_argument("--prompt", type=int, default=128)
            words.add_argument("--new", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.plain_buffers:
        keep_plain_buffers()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
