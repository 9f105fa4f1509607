"""One call of llm-compressor on given token windows, timed from the inside. Runs in its own environment (bench/environments.sh).

Prints one JSON object: seconds of the import, of the one-shot call and of its phases, peak memory before and after, and where the
dense result was written. Phases: `gram` and `solve` are timed around the functions that do them; `forward` is the rest of the call.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

START = time.perf_counter()

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq import base as gptq
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.sparsegpt import base as sparsegpt
from loguru import logger
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

SECONDS = {"gram": 0.0, "solve": 0.0}


def timed(phase: str, function: Callable) -> Callable:
    """The function, its time added to a phase."""

    def wrapper(*arguments, **named):
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            SECONDS[phase] += time.perf_counter() - start

    return wrapper


def modifier(arguments: argparse.Namespace):
    """The recipe: GPTQ with groups, or SparseGPT."""
    if arguments.method == "sparsegpt":
        return SparseGPTModifier(sparsity=arguments.sparsity, targets=["Linear"], ignore=["re:.*lm_head"])
    weights = {
        "num_bits": arguments.bits,
        "type": "int",
        "symmetric": not arguments.asymmetric,
        "strategy": "group",
        "group_size": arguments.group_size,
    }
    return GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])


def peak_bytes() -> int:
    """Peak memory of this program alone; getrusage counts what the process that started it held, too."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("windows", help="safetensors file with input_ids [rows, tokens]")
    parser.add_argument("--method", choices=["gptq", "sparsegpt"], default="gptq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", help="folder for the dense result")
    arguments = parser.parse_args()
    logger.remove()
    imported = time.perf_counter() - START
    gptq.accumulate_hessian = timed("gram", gptq.accumulate_hessian)
    gptq.quantize_weight = timed("solve", gptq.quantize_weight)
    sparsegpt.accumulate_hessian = timed("gram", sparsegpt.accumulate_hessian)
    sparsegpt.sparsify_weight = timed("solve", sparsegpt.sparsify_weight)

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    windows = load_file(arguments.windows)["input_ids"]
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]
    before = peak_bytes()
    start = time.perf_counter()
    result = oneshot(
        model=model,
        dataset=DataLoader(rows, batch_size=arguments.batch),
        recipe=modifier(arguments),
        max_seq_length=windows.shape[1],
        num_calibration_samples=windows.shape[0],
    )
    call = time.perf_counter() - start
    peak = peak_bytes()
    if arguments.out:
        result.save_pretrained(arguments.out, save_compressed=False)
    total = time.perf_counter() - START
    phases = {**SECONDS, "forward": call - sum(SECONDS.values())}
    print(
        json.dumps(
            {
                "peer": "llm-compressor",
                "import_seconds": imported,
                "call_seconds": call,
                "total_seconds": total,
                "phases": phases,
                "peak_before_bytes": before,
                "peak_bytes": peak,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
