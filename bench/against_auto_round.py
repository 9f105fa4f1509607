"""GPTQ beside auto-round at 4 bits in groups of 32: quality on one model, and the time of the calls.

Usage: bench/environments.sh auto-round
       python bench/against_auto_round.py                     writes bench/results/quality_auto_round.json
       python bench/against_auto_round.py --model FOLDER --iterations 50

Both get the same model (the one inside the package unless another is named), the same 128 windows of 512 tokens, and the same cores.
auto-round tunes the rounding of each block by gradients, 200 steps unless said otherwise; thrifty solves each matrix once. Quality is
compared on held-out windows, window by window: an interval that holds 0 means that neither is better.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from judge import Judge, best, verdict, write

PEER = "auto-round"


def quality(model: Path | None, iterations: int) -> dict:
    """Both peers' results against the original and against each other, and what the calls took."""
    requests = {}
    for kind, words in (("symmetric", ()), ("asymmetric", ("--asymmetric",))):
        requests[f"4 bit {kind}"] = {"thrifty": words, PEER: (*words, "--iterations", str(iterations))}
    judge = Judge(model)
    scores, costs = judge.results(PEER, requests)
    rows = []
    for name in requests:
        ours, theirs = costs["thrifty", name], costs[PEER, name]
        ratio = ours["call_seconds"] / theirs["call_seconds"]
        rows.append({**verdict(name, PEER, scores), "calls": {"thrifty": ours, PEER: theirs, "call_ratio": ratio}})
    return {
        **judge.describe(),
        "iterations": iterations,
        "rows": rows,
        "better_of_symmetric_and_asymmetric": best(4, list(requests), PEER, scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a causal language model; the model inside the package if left out")
    parser.add_argument("--iterations", type=int, default=200, help="auto-round's tuning steps a block (its own default: 200)")
    parser.add_argument("--out", default="quality_auto_round.json", help="file name in bench/results")
    arguments = parser.parse_args()
    write(arguments.out, quality(arguments.model, arguments.iterations))


if __name__ == "__main__":
    main()
