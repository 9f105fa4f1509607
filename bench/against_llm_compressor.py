"""GPTQ and SparseGPT beside llm-compressor: quality on the embedded model, time and memory on a 300-million-parameter checkpoint.

Usage: bench/environments.sh llm-compressor
       python bench/against_llm_compressor.py quality      writes bench/results/quality_llm_compressor.json
       python bench/against_llm_compressor.py cost         writes bench/results/cost_llm_compressor.json (about 50 minutes; finished
                                                           calls are kept in bench/build/calls)

Both get the same model, the same token windows in the same order, the same group size, and the same two cores. Calls take turns in one
run; medians count. Quality is compared on held-out windows, window by window: an interval that holds 0 means that neither is better.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from judge import CORES, Judge, best, call, kept, random_model, random_windows, scratch, verdict, write
from limit import flop_rates, operations

from thrifty.data import default_model
from thrifty.models import open_model

PEER = "llm-compressor"


# -- quality -------------------------------------------------------------------------------------------------------------


def quality() -> dict:
    """Both peers' results on the embedded model against the original and against each other."""
    requests = {
        "gptq 4 bit symmetric": (),
        "gptq 4 bit asymmetric": ("--asymmetric",),
        "gptq 3 bit symmetric": ("--bits", "3"),
        "gptq 3 bit asymmetric": ("--bits", "3", "--asymmetric"),
        "gptq 2 bit symmetric": ("--bits", "2"),
        "gptq 2 bit asymmetric": ("--bits", "2", "--asymmetric"),
        "sparsegpt 50 %": ("--method", "sparsegpt"),
    }
    judge = Judge()
    scores, _ = judge.results(PEER, {name: {"thrifty": words, PEER: words} for name, words in requests.items()})
    return {
        **judge.describe(),
        "rows": [verdict(name, PEER, scores) for name in requests],
        "better_of_symmetric_and_asymmetric": [
            best(bits, [f"gptq {bits} bit {kind}" for kind in ("symmetric", "asymmetric")], PEER, scores) for bits in (4, 3, 2)
        ],
    }


# -- time and memory -----------------------------------------------------------------------------------------------------

# (model, windows of 512 tokens, turns): the large one with little and with much calibration, and the one inside the package.
WORK = (("llama-300m", 8, 3), ("embedded", 128, 3), ("llama-300m", 128, 1))


def cost() -> dict:
    """Time and peak memory of both, in turns. Every finished call is kept in bench/build and not made again."""
    rates = flop_rates()
    rows = [row(name, count, method, rounds, rates) for name, count, rounds in WORK for method in ("gptq", "sparsegpt")]
    return {"models": {"llama-300m": "random Llama, 314 million parameters, bfloat16"}, "flop_rates": rates, "cores": CORES, "rows": rows}


def row(name: str, count: int, method: str, rounds: int, rates: dict[str, float]) -> dict:
    """One request: medians of each, and the median of the ratios of the rounds."""
    model = folder(name)
    windows = random_windows(model, count)
    pairs = [in_turn(model, windows, method, f"{name}-{count}-{method}-{number}") for number in range(rounds)]
    found = {who: middle([pair[who] for pair in pairs]) for who in ("thrifty", PEER)}
    least = {phase: flops / rates[phase] for phase, flops in operations(open_model(model).anatomy, count, 512).items()}
    for one in found.values():
        one["limit_over_measured"] = {phase: seconds / one["phases"][phase] for phase, seconds in least.items()}
    return {
        "model": name,
        "method": method,
        "tokens": count * 512,
        **found,
        "limit_seconds": least,
        "call_ratio": ratio(pairs, lambda call: call["call_seconds"]),
        "solve_ratio": ratio(pairs, lambda call: call["phases"]["solve"]),
        "whole_command_ratio": ratio(pairs, lambda call: call["total_seconds"]),
        "peak_ratio": ratio(pairs, lambda call: call["peak_bytes"]),
        "rounds": rounds,
    }


def folder(name: str) -> Path:
    """The model of that name."""
    return default_model() if name == "embedded" else random_model(name)


def in_turn(model: Path, windows: Path, method: str, key: str) -> dict[str, dict]:
    """One call of each, one after the other; taken from bench/build when this very pair was measured before."""

    def both() -> dict[str, dict]:
        pair = {}
        for who in ("thrifty", PEER):
            batch = ("--batch", "8") if who == PEER else ()
            with scratch() as out:
                pair[who] = call(who, model, windows, out if who == "thrifty" else None, "--method", method, *batch)
        return pair

    return kept(key, both)


def ratio(pairs: list[dict], figure: Callable[[dict], float]) -> float:
    """Thrifty over the peer: the median of the rounds."""
    return statistics.median(figure(pair["thrifty"]) / figure(pair[PEER]) for pair in pairs)


def middle(calls: list[dict]) -> dict:
    """Medians of every figure."""
    phases = {name: statistics.median(call["phases"][name] for call in calls) for name in calls[0]["phases"]}
    names = ("import_seconds", "call_seconds", "total_seconds", "peak_before_bytes", "peak_bytes")
    return {**{name: statistics.median(call[name] for call in calls) for name in names}, "phases": phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["quality", "cost"])
    arguments = parser.parse_args()
    write(f"{arguments.part}_llm_compressor.json", quality() if arguments.part == "quality" else cost())


if __name__ == "__main__":
    main()
