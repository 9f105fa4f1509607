"""Memory and speed with more and more left on disk: `thrifty.load(..., memory=...)` against everything in memory.

Usage: python bench/memory_budget.py [--rounds 3] [--only MODEL] [--steps 5]     (writes bench/results/memory_budget.json; 1 GB of disk)

Each figure is of a process of its own, forked when everything is imported: a prompt, then new tokens, greedily. The budget given to each
is the peak that is expected of the placement, so that what is decided and how well the peak is foreseen show, too. Tokens and the logits
of the last one must be equal everywhere, or it fails. The model's files are in the page cache: a disk that must be waited for is slower
than this. The random Llama of 314 million parameters (bench/random_llama.py) in bfloat16, and the model inside the package, whose tables
are too small to be left on disk: for it the smallest table that is, and the fewest tokens that are kept, are made smaller. A run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import thrifty
from thrifty.base.memory import peak_rss_bytes, rss_bytes
from thrifty.data import default_model
from thrifty.measure.hardware import hardware, versions
from thrifty.models import open_model
from thrifty.runtime import budget, frugal, load  # noqa: F401

HERE = Path(__file__).parent
BUILD = HERE / "build"
STEPS = ("in memory", "embeddings on disk", "keys and values, too", "half the blocks, too", "all blocks and the head, too")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("random Llama", "embedded"))
    parser.add_argument("--steps", type=int, default=len(STEPS), help="how many of the steps, from everything in memory on")
    arguments = parser.parse_args()
    rounds, steps = arguments.rounds, STEPS[: arguments.steps]
    models = {"random Llama": (random_model(), 1280, 16), "embedded": (default_model(), 448, 32)}
    models = {name: model for name, model in models.items() if arguments.only in (None, name)}
    summary = {"hardware": hardware(), "versions": versions(), "rounds": rounds, "models": {}}
    log = BUILD / "memory_budget.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for name, (folder, prompt, new) in models.items():
        found: dict[str, list[dict]] = {step: [] for step in steps}
        for turn in range(rounds):
            for step in steps:
                key = [name, prompt, new, turn, step]
                row = next((row for known, row in done if known == key), None) or alone(folder, step, prompt, new)
                found[step].append(row)
                if [key, row] not in done:
                    with log.open("a") as file:
                        file.write(json.dumps([key, row]) + "\n")
        results = {(row["tokens"], row["logits"]) for rows in found.values() for row in rows}
        if len(results) != 1:
            raise SystemExit(f"{name}: outputs differ: {results}")
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        rows = [{"step": step, **middle(found[step])} for step in steps]
        summary["models"][name] = {"checkpoint_bytes": stored, "prompt_tokens": prompt, "new_tokens": new, "outputs": "equal", "rows": rows}
    path = HERE / "results" / "memory_budget.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    log.unlink()
    print(json.dumps(summary, indent=2))


def alone(folder: Path, step: str, prompt: int, new: int) -> dict:
    """`child` in a process of its own: a fork of this one, which has imported everything and computed nothing."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(child(folder, step, prompt, new)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def random_model() -> Path:
    folder = BUILD / "llama-300m"
    if not (folder / "config.json").exists():
        subprocess.run([sys.executable, HERE / "random_llama.py", folder], check=True)
    return folder


def middle(rows: list[dict]) -> dict:
    """Medians of the numbers of several rounds; the rest of the first."""
    return {key: median(row[key] for row in rows) if isinstance(value, float) else value for key, value in rows[0].items()}


def child(folder: Path, step: str, prompt: int, new: int) -> dict:
    """One process: load, generate, and what that took."""
    if folder.name != "llama-300m":
        budget.TABLE_BYTES = 1 << 18
        budget.LEAST_KEPT = 64
    memory = None
    if step != STEPS[0]:
        source = open_model(folder)
        parts = frugal._Loader(frugal.PlainModel(source), source.dtype).parts(prompt + new)
        memory = budget.peak(wanted(step, parts), parts) + SLACK
        del source
    before = rss_bytes()
    start = time.perf_counter()
    model = thrifty.load(folder, memory=memory, tokens=None if memory is None else prompt + new)
    load_seconds = time.perf_counter() - start
    row = torch.randint(3, 1000, (1, prompt), generator=torch.Generator().manual_seed(0))
    clock = Clock()
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0, "logits_processor": [clock]}
    wall, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        tokens = model.generate(row, attention_mask=torch.ones_like(row), **settings)[0, prompt:].tolist()
    (first, first_processor), (last, last_processor) = clock.times[0], clock.times[-1]
    placement = getattr(model, "placement", None)
    return {
        "placement": None if placement is None else {**asdict(placement), "words": str(placement)},
        "process_bytes": before,
        "peak_rss_bytes": float(peak_rss_bytes()),
        "load_seconds": load_seconds,
        "prefill_tokens_per_second": prompt / (first - wall),
        "decode_tokens_per_second": (new - 1) / (last - first),
        "prefill_processor_seconds": first_processor - processor,
        "decode_processor_seconds_per_token": (last_processor - first_processor) / (new - 1),
        "threads": torch.get_num_threads(),
        "tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16],
        "logits": clock.digest,
    }


SLACK = 4 << 20
"""The process holds a little more when the model is loaded than when its parts were asked for."""


def wanted(step: str, parts: budget.Parts) -> budget.Placement:
    """The placement that a step stands for."""
    found = budget.Placement(embedding=True)
    if step != STEPS[1]:
        found = replace(found, kept=budget.LEAST_KEPT)
    if step == STEPS[3]:
        found = replace(found, blocks=len(parts.blocks) // 2)
    if step == STEPS[4]:
        found = replace(found, blocks=len(parts.blocks), head=True)
    return found


class Clock:
    """Notes when each token's logits are there, and what the last ones are."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.digest = ""

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append((time.perf_counter(), time.process_time()))
        self.digest = hashlib.sha256(scores.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        return scores


if __name__ == "__main__":
    main()
