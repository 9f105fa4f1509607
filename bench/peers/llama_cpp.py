"""Perplexity of a GGUF file in llama.cpp on given token windows. Runs in its own environment (bench/environments.sh llama-cpp).

Every window is read on its own, and the loss is that of each token but the first given those before it, as `thrifty evaluate` counts it.
Prints one JSON object {perplexity, tokens, seconds}: tokens that were predicted, and seconds of llama.cpp's own computation.
"""

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
from safetensors.torch import load_file


def read_windows(path: Path) -> torch.Tensor:
    """Token ids [rows, tokens], from `input_ids` of a safetensors file or from a .npy file."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path)).to(torch.int64)
    return load_file(path)["input_ids"].to(torch.int64)


def row_loss(model: Llama, row: torch.Tensor) -> tuple[float, float]:
    """Summed next-token loss of a window in nats, and the seconds that llama.cpp took."""
    start = time.perf_counter()
    model.reset()
    model.eval(row.tolist())
    seconds = time.perf_counter() - start
    logits = torch.from_numpy(model.scores[: len(row) - 1])
    return float(torch.nn.functional.cross_entropy(logits.double(), row[1:], reduction="sum")), seconds


def keep_plain_buffers() -> None:
    """Let llama.cpp not rearrange weights for the processor: its AMX kernels end with a fault on virtual machines that only claim AMX."""
    defaults = llama_cpp.llama_model_default_params

    def without_extra_buffers() -> llama_cpp.llama_model_params:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_model_default_params = without_extra_buffers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("windows", type=Path, help="safetensors file with input_ids, or .npy file: int64 [rows, tokens]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--plain-buffers", action="store_true", help="do not rearrange weights for the processor (slower, works everywhere)"
    )
    arguments = parser.parse_args()
    if arguments.plain_buffers:
        keep_plain_buffers()
    windows = read_windows(arguments.windows)
    rows, length = windows.shape
    model = Llama(
        str(arguments.model), n_ctx=length, n_batch=length, logits_all=True, verbose=False,
        n_threads=arguments.threads, n_threads_batch=arguments.threads,
    )  # fmt: skip
    found = [row_loss(model, row) for row in windows]
    tokens = rows * (length - 1)
    perplexity = math.exp(sum(loss for loss, _ in found) / tokens)
    print(json.dumps({"perplexity": perplexity, "tokens": tokens, "seconds": sum(seconds for _, seconds in found)}))


if __name__ == "__main__":
    main()
