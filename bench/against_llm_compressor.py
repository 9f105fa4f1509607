"""GPTQ and SparseGPT beside llm-compressor: quality on the embedded model, time and memory on a 300-million-parameter checkpoint.

Usage: bench/environments.sh llm-compressor
       python bench/against_llm_compressor.py quality      writes bench/results/quality_llm_compressor.json
       python bench/against_llm_compressor.py cost         writes bench/results/cost_llm_compressor.json (about half an hour;
                                                           finished rows are kept in bench/build and not measured again)

Both get the same model, the same token windows in the same order, the same group size, and both cores. Calls take turns in one run; medians
count. Quality is compared on held-out windows, window by window: an interval that holds 0 means that neither is better.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from judge import BUILD, Judge, best, call, verdict, write
from safetensors.torch import save_file

PEER = "llm-compressor"


# -- quality -------------------------------------------------------------------------------------------------------------


def quality() -> dict:
    """Both peers' results on the embedded model against the original and against each other."""
    requests = {
        "gptq 4 bit symmetric": (),
        "gptq 4 bit asymmetric": ("--asymmetric",),
        "gptq 3 bit symmetric": ("--bits", "3"),
        "gptq 3 bit asymmetric": ("--bits", "3", "--asymmetric"),
        "sparsegpt 50 %": ("--method", "sparsegpt"),
    }
    judge = Judge()
    scores, _ = judge.results(PEER, {name: {"thrifty": words, PEER: words} for name, words in requests.items()})
    return {
        **judge.describe(),
        "rows": [verdict(name, PEER, scores) for name in requests],
        "better_of_symmetric_and_asymmetric": [
            best(bits, [f"gptq {bits} bit {kind}" for kind in ("symmetric", "asymmetric")], PEER, scores) for bits in (4, 3)
        ],
    }


# -- time and memory -----------------------------------------------------------------------------------------------------


def cost(rounds: int) -> dict:
    """Time and peak memory of both on the 300-million-parameter checkpoint, in turns."""
    model = BUILD / "llama-300m"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, Path(__file__).parent / "random_llama.py", model], check=True)
    kept = BUILD / "cost.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    done = {(row["method"], row["tokens"]) for row in rows}
    for count in (8, 128):
        windows = BUILD / f"windows-{count * 512}.safetensors"
        tokens = torch.randint(3, 2048, (count, 512), generator=torch.Generator().manual_seed(0))
        save_file({"input_ids": tokens}, windows)
        for method in ("gptq", "sparsegpt"):
            if (method == "sparsegpt" and count > 8) or (method, count * 512) in done:
                continue
            rows.append(in_turns(model, windows, count * 512, method, rounds))
            kept.write_text(json.dumps(rows))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (row["tokens"], row["method"]))
    return {"model": "random Llama, 314 million parameters, bfloat16", "rows": rows, "flop_rate": flop_rate()}


def in_turns(model: Path, windows: Path, tokens: int, method: str, rounds: int) -> dict:
    """Calls of both in turns; medians, and the ratio of each round."""
    out = BUILD / "cost"
    found: dict[str, list[dict]] = {"thrifty": [], PEER: []}
    for _ in range(rounds):
        for who in found:
            shutil.rmtree(out, ignore_errors=True)
            batch = ("--batch", "8") if who == PEER else ()
            found[who].append(call(who, model, windows, out if who == "thrifty" else None, "--method", method, *batch))
    shutil.rmtree(out, ignore_errors=True)
    pairs = list(zip(found["thrifty"], found[PEER], strict=True))
    return {
        "method": method,
        "tokens": tokens,
        **{who: middle(calls) for who, calls in found.items()},
        "call_ratio": statistics.median(ours["call_seconds"] / theirs["call_seconds"] for ours, theirs in pairs),
        "solve_ratio": statistics.median(ours["phases"]["solve"] / theirs["phases"]["solve"] for ours, theirs in pairs),
        "whole_command_ratio": statistics.median(ours["total_seconds"] / theirs["total_seconds"] for ours, theirs in pairs),
        "peak_ratio": statistics.median(ours["peak_bytes"] / theirs["peak_bytes"] for ours, theirs in pairs),
        "rounds": rounds,
    }


def middle(calls: list[dict]) -> dict:
    """Medians of every figure."""
    phases = {name: statistics.median(call["phases"][name] for call in calls) for name in calls[0]["phases"]}
    names = ("import_seconds", "call_seconds", "total_seconds", "peak_before_bytes", "peak_bytes")
    return {**{name: statistics.median(call[name] for call in calls) for name in names}, "phases": phases}


def flop_rate() -> dict[str, float]:
    """What this machine multiplies, operations a second: the limit that the phases are to be held against."""
    import time

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        left = torch.randn(2048, 2048).to(dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            left @ left
            times.append(time.perf_counter() - start)
        found[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / statistics.median(times[2:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["quality", "cost"])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each row of the cost")
    arguments = parser.parse_args()
    write(f"{arguments.part}_llm_compressor.json", quality() if arguments.part == "quality" else cost(arguments.rounds))


if __name__ == "__main__":
    main()
