"""The main job and every method of weights on a CUDA device, beside the processor of the same machine.

Usage: python bench/on_cuda.py [--out FILE] [--parts NAME...]       (writes bench/results/on_cuda.json; some minutes)

Four parts: every method on one matrix, on both; the run on the model inside the package, on both; a random Llama of 300 million parameters,
on both; and the same on a device that is short of memory, where batches are halved until they fit.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import thrifty
from thrifty.base.errors import InputError
from thrifty.base.method import Method
from thrifty.pipeline.catalogue import load_methods
from thrifty.pipeline.sample import sample_problem
from thrifty.weights.base import Allocator, Preset, Solver, Target, Treatment, solve
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.round import Round
from thrifty.weights.target.int import Int

HERE = Path(__file__).parent
BUILD = HERE / "build" / "on_cuda"
RECIPE = "{evaluation: {samples: 8, tokens: 512}, steps: [{gptq: {bits: 4, group_size: 32}}]}"
ROWS, LENGTH, VOCABULARY = 128, 512, 4096
SHORT = 0.35
"""GB that a device short of memory has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "on_cuda.json")
    parser.add_argument("--parts", nargs="*", help="some of: methods, embedded, large, short")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    words = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if words.device == "cuda":
        found["device"] = torch.cuda.get_device_name()
    if words.out.exists():
        found = json.loads(words.out.read_text()) | found
    for name, part in PARTS.items():
        if words.parts and name not in words.parts:
            continue
        began = time.perf_counter()
        try:
            found[name] = part(words.device)
        except Exception as error:  # the parts after it still run
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(name, f"{time.perf_counter() - began:.0f} s", json.dumps(found[name])[:3000], file=sys.stderr, flush=True)
        words.out.write_text(json.dumps(found, indent=2) + "\n")


def methods(device: str) -> dict[str, Any]:
    """The loss of every example of every method on one matrix: on the device over that on the processor."""
    found = {}
    for name, treatment in treatments():
        problem = sample_problem(512)
        there = replace(problem, weight=problem.weight.to(device), gram=problem.gram.to(device))
        try:
            here, other = solve(problem, treatment), solve(there, treatment)
            exact = bool(torch.equal(other.encoded.decode(), other.values))
            found[name] = {"loss_ratio": other.loss / here.loss if here.loss else 1.0, "decoded_exactly": exact}
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    return found


def treatments() -> Iterator[tuple[str, Treatment]]:
    """Every example of every method that solves, completed where it is only a part."""
    for name, method in load_methods().items():
        for number, example in enumerate(method.examples()):
            made = complete(example)
            if made is not None:
                yield f"{name} {number}", made


def complete(example: Method) -> Treatment | None:
    """The example as a whole treatment; None for what does not solve."""
    if isinstance(example, Preset):
        return example.expand()
    choices: list[Any] = []
    if isinstance(example, Solver):
        choices = [lambda: Treatment(example, Int())]
    elif isinstance(example, Target):
        choices = [lambda: Treatment(OBS(), example), lambda: Treatment(Round(), example)]
    elif isinstance(example, Allocator):
        choices = [lambda: Treatment(OBS(), Int(), example), lambda: Treatment(OBS(), Int(group_size=0, symmetric=False), example)]
    for choice in choices:
        try:
            return choice()
        except InputError:
            continue
    return None


def embedded(device: str) -> dict[str, Any]:
    """`thrifty compress` on the model inside the package."""
    return {where: run(where, f"embedded-{where}") for where in ("cpu", device)}


def large(device: str) -> dict[str, Any]:
    """A random Llama of 300 million parameters, calibrated on 65,536 tokens."""
    return {where: run(where, f"large-{where}", model=model(), recipe=RECIPE, calibration=rows()) for where in ("cpu", device)}


def short(device: str) -> dict[str, Any]:
    """The same where the device has little memory."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(SHORT * 1e9 / torch.cuda.get_device_properties(0).total_memory)
    return run(device, "short", model=model(), recipe=RECIPE, calibration=rows())


def model() -> Path:
    """The folder of the random checkpoint."""
    folder = HERE / "build" / "llama-300m"
    if not (folder / "config.json").exists():
        subprocess.run([sys.executable, HERE / "random_llama.py", folder], check=True)
    return folder


def rows() -> dict[str, torch.Tensor]:
    """Random token ids."""
    return {"input_ids": torch.randint(3, 1000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))}


def run(device: str, name: str, **words: Any) -> dict[str, Any]:
    """One call, and what it says of itself."""
    out = BUILD / name
    shutil.rmtree(out, ignore_errors=True)
    if "calibration" in words:
        words["evaluation"] = {"input_ids": words["calibration"]["input_ids"][:8]}
    planned = thrifty.plan(out=out, device=device, **words).cost.device_memory if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    result = thrifty.compress(out=out, device=device, speed=False, **words)
    seconds = time.perf_counter() - began
    found = {"seconds": seconds, "phases": result["phases"], "peak_rss_bytes": result["peak_rss_bytes"], "kl": result["kl"]}
    found["mean_relative_error"] = sum(layer["relative_error"] for layer in result["layers"]) / len(result["layers"])
    found["warnings"] = result["warnings"]
    if device == "cuda":
        found |= {"peak_device_bytes": torch.cuda.max_memory_allocated(), "planned_device_bytes": planned}
    shutil.rmtree(out, ignore_errors=True)
    return found


PARTS = {"methods": methods, "embedded": embedded, "large": large, "short": short}


if __name__ == "__main__":
    main()
