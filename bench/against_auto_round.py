"""GPTQ beside auto-round at 4 bits in groups of 32: quality on one model, and the time of the calls.

Usage: bench/environments.sh auto-round
       python bench/against_auto_round.py                     writes bench/results/quality_auto_round.json
       python bench/against_auto_round.py --model FOLDER --iterations 50
       python bench/against_auto_round.py --cost --iterations 4     writes bench/results/cost_auto_round.json: time and memory alone,
                                                                    on a random Llama of 314 million parameters

Both get the same model (the one inside the package unless another is named), the same 128 windows of 512 tokens, and the same cores.
auto-round tunes the rounding of each block by gradients, 200 steps unless said otherwise; thrifty solves each matrix once. Quality is
compared on held-out windows, window by window: an interval that holds 0 means that neither is better. On the large
model auto-round is given few steps, so that its time is a lower bound.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from judge import Judge, best, call, kept, random_model, random_windows, scratch, verdict, write

from thrifty.measure.hardware import hardware

PEER = "auto-round"
WINDOWS = 8
"""Windows of 512 tokens for the large model."""
FIGURES = {"call": "seconds", "total": "seconds", "peak": "bytes"}


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


def cost(iterations: int) -> dict:
    """What the calls take on the large model; every finished call is kept in bench/build."""
    model = random_model("llama-300m")
    windows = random_windows(model, WINDOWS)
    requests = {
        "thrifty": ("thrifty", ("--method", "gptq")),
        PEER: (PEER, ("--iterations", str(iterations))),
    }

    def timed(who: str, words: tuple[str, ...]) -> dict:
        with scratch() as out:
            return call(who, model, windows, out, *words)

    calls = {name: kept(f"auto-round-{iterations}-{name}", partial(timed, *request)) for name, request in requests.items()}
    ratios = {f"{figure}_ratio": calls["thrifty"][f"{figure}_{unit}"] / calls[PEER][f"{figure}_{unit}"] for figure, unit in FIGURES.items()}
    head = {"model": "random Llama, 314 million parameters, bfloat16", "tokens": WINDOWS * 512, "iterations": iterations}
    return {**head, "hardware": hardware(), "calls": calls, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a causal language model; the model inside the package if left out")
    parser.add_argument("--iterations", type=int, default=200, help="auto-round's tuning steps a block (its own default: 200)")
    parser.add_argument("--out", help="file name in bench/results")
    parser.add_argument("--cost", action="store_true", help="time and memory on the large model")
    arguments = parser.parse_args()
    if arguments.cost:
        write(arguments.out or "cost_auto_round.json", cost(arguments.iterations))
    else:
        write(arguments.out or "quality_auto_round.json", quality(arguments.model, arguments.iterations))


if __name__ == "__main__":
    main()
