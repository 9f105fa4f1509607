"""One call of auto-round on given token windows, timed from the inside. Runs in its own environment (bench/environments.sh).

Prints one JSON object: seconds of the import and of the call, peak memory before and after. The folder gets the model that the call
returns, its rounded weights as plain ones: version 0.16.1 writes the original weights when it is asked for that form by its name "fake".
"""

import argparse
import json
import sys
import time
from pathlib import Path

START = time.perf_counter()

# This file is named like the package, and its folder is searched first.
sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import torch
from auto_round import AutoRound, SignRoundConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def peak_bytes() -> int:
    """Peak memory of this program alone; getrusage counts what the process that started it held, too."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("windows", help="safetensors file with input_ids [rows, tokens]")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--iterations", type=int, default=200, help="tuning steps a block; 200 is its own default")
    parser.add_argument("--batch", type=int, default=8, help="windows a step; 8 is its own default")
    parser.add_argument("--out", required=True, help="folder for the dense result")
    arguments = parser.parse_args()
    imported = time.perf_counter() - START

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    windows = load_file(arguments.windows)["input_ids"]
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in windows.split(arguments.batch)]
    before = peak_bytes()
    rounding = SignRoundConfig(
        iters=arguments.iterations, bits=arguments.bits, group_size=arguments.group_size, sym=not arguments.asymmetric
    )
    start = time.perf_counter()
    tuned, _ = AutoRound(
        model,
        tokenizer,
        alg_configs=rounding,
        dataset=batches,
        seqlen=windows.shape[1],
        nsamples=windows.shape[0],
        batch_size=arguments.batch,
        device_map="cpu",
        seed=0,
    ).quantize()
    called = time.perf_counter() - start
    peak = peak_bytes()
    tuned.save_pretrained(arguments.out)
    print(
        json.dumps(
            {
                "peer": "auto-round",
                "import_seconds": imported,
                "call_seconds": called,
                "total_seconds": time.perf_counter() - START,
                "peak_before_bytes": before,
                "peak_bytes": peak,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
