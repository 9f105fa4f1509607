"""The ways of a packed layer beside a dense bf16 product, from 1 to 512 tokens, and how near each comes to the memory's own speed.

Usage: python bench/linear_kernels.py [--rounds 9] [--pool-mb 1024] [--out FILE]            (writes bench/results/linear_kernels.json)

Every call takes the next layer of a pool that is larger than the processor's caches, as in a model, so weights come from memory. The ways
take turns within a round, and a round goes through all numbers of tokens; figures are medians over the rounds. The bandwidth is that of
reading a buffer as large as the pool, taken once a round. `--pool-mb` counts the weights of a pool in bf16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

from thrifty.base.records import Encoded
from thrifty.measure.hardware import hardware, versions
from thrifty.runtime.linear import FEW_TOKENS, PackedLinear

HERE = Path(__file__).parent
SHAPES = ((5632, 2048), (2048, 2048))
TOKENS = (1, 2, 4, 6, 8, 16, 32, 64, 128, 256, 512)
GROUP_SIZE = 32

Way = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pool-mb", type=int, default=1024)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "linear_kernels.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    bandwidth: list[float] = []
    with torch.inference_mode():
        rows = [row for shape in SHAPES for row in measure(shape, arguments, bandwidth)]
    summary = {
        "hardware": hardware(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "pool_bytes": arguments.pool_mb << 20,
        "group_size": GROUP_SIZE,
        "few_tokens": FEW_TOKENS,
        "read_bytes_per_second": median(bandwidth),
        "rows": [row | limits(row, median(bandwidth)) for row in rows],
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=2) + "\n")
    show(summary)


def measure(shape: tuple[int, int], arguments: argparse.Namespace, bandwidth: list[float]) -> list[dict]:
    """Seconds a call, for every number of tokens and every way; what the memory gave is added to `bandwidth`."""
    count = max(2, (arguments.pool_mb << 20) // (2 * shape[0] * shape[1]))
    ways = pool(shape, count)
    buffer = torch.ones(count * shape[0] * shape[1] // 2)
    seconds: dict[tuple[int, str], list[float]] = {}
    for turn in range(arguments.rounds + 1):  # the first one only warms up
        began = time.perf_counter()
        buffer.sum()
        spent = time.perf_counter() - began
        if turn:
            bandwidth.append(buffer.nbytes / spent)
        for tokens in arguments.tokens:
            inputs = torch.randn(tokens, shape[1]).to(torch.bfloat16)
            for name, layers in ways.items():
                spent = call(layers, inputs, max(4, min(count, 256 // tokens)))
                if turn:
                    seconds.setdefault((tokens, name), []).append(spent)
    return [row(shape, tokens, {name: seconds[tokens, name] for name in ways}) for tokens in arguments.tokens]


def pool(shape: tuple[int, int], count: int) -> dict[str, cycle[Way]]:
    """The ways, each going round and round through `count` layers."""
    packed = [random_layer(shape) for _ in range(count)]
    weights = [torch.randn(shape).to(torch.bfloat16) for _ in range(count)]
    return {
        "bf16": cycle([lambda inputs, weight=weight: functional.linear(inputs, weight) for weight in weights]),
        "4-bit kernel": cycle([few(layer) for layer in packed]),
        "8-bit products": cycle([layer._many for layer in packed]),
        "packed layer": cycle(packed),
    }


def random_layer(shape: tuple[int, int]) -> PackedLinear:
    """A packed layer of random codes."""
    codes = torch.randint(-8, 8, shape, dtype=torch.int8)
    scale = torch.exp2(torch.randint(-9, -5, (shape[0], shape[1] // GROUP_SIZE)).float())
    layer = PackedLinear(Encoded("int", {"codes": codes, "scale": scale}, shape, 4.0, GROUP_SIZE), bias=False, dtype=torch.bfloat16)
    if not layer.kernel:
        raise SystemExit("torch has no 4-bit kernel for this processor")
    return layer


def few(layer: PackedLinear) -> Way:
    """The 4-bit kernel, whatever the number of tokens."""
    return lambda inputs: torch.ops.aten._weight_int4pack_mm_for_cpu(inputs, layer.codes, layer.group_size, layer.scale)


def call(layers: cycle[Way], inputs: torch.Tensor, times: int) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    for _ in range(times):
        next(layers)(inputs)
    return (time.perf_counter() - began) / times


# -- what is reported ----------------------------------------------------------------------------------------------------


def row(shape: tuple[int, int], tokens: int, seconds: dict[str, list[float]]) -> dict:
    """One line: medians, the fastest and the slowest round, and how many times faster than bf16 in the middle round."""
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "out": shape[0],
        "in": shape[1],
        "tokens": tokens,
        "seconds": medians,
        "range": {name: [min(values), max(values)] for name, values in seconds.items()},
        "times_faster_than_bf16": {
            name: median(dense / ours for dense, ours in zip(seconds["bf16"], values, strict=True))
            for name, values in seconds.items()
            if name != "bf16"
        },
    }


def limits(row: dict, bandwidth: float) -> dict:
    """How many times longer each way takes than its weights, inputs and outputs need to pass through the memory once."""
    weights = row["out"] * row["in"]
    around = 2 * row["tokens"] * (row["in"] + row["out"])
    needed = {"bf16": 2 * weights, "4-bit kernel": weights // 2 + 4 * weights // GROUP_SIZE, "8-bit products": weights}
    needed["packed layer"] = needed["4-bit kernel" if row["tokens"] <= FEW_TOKENS else "8-bit products"]
    least = {name: (number + around) / bandwidth for name, number in needed.items()}
    return {"times_the_memory_limit": {name: row["seconds"][name] / least[name] for name in least}}


def show(summary: dict) -> None:
    print(f"memory gives {summary['read_bytes_per_second'] / 1e9:.1f} GB/s to {summary['threads']} threads")
    print("microseconds a call (times the memory limit)")
    names = list(summary["rows"][0]["seconds"])
    print(" ".join(["shape      ", "tokens", *(f"{name:>18}" for name in names), "packed is faster by"]))
    for line in summary["rows"]:
        cells = [f"{line['seconds'][name] * 1e6:10.0f} ({line['times_the_memory_limit'][name]:5.1f})" for name in names]
        faster = line["times_faster_than_bf16"]["packed layer"]
        print(" ".join([f"{line['out']}x{line['in']:<6}", f"{line['tokens']:6}", *cells, f"{faster:10.2f}"]))


if __name__ == "__main__":
    main()
