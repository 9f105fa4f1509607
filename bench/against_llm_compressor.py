"""GPTQ and SparseGPT beside llm-compressor: quality on the embedded model, time and memory on a 300-million-parameter checkpoint.

Usage: bench/environments.sh llm-compressor
       python bench/against_llm_compressor.py quality      writes bench/results/quality_llm_compressor.json
       python bench/against_llm_compressor.py cost         writes bench/results/cost_llm_compressor.json (about half an hour)

Both get the same model, the same token windows in the same order, the same group size, and both cores. Calls take turns in one run; medians
count. Quality is compared on held-out windows, window by window: an interval that holds 0 means that neither is better.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
BUILD = HERE / "build"
RESULTS = HERE / "results"
PEER = BUILD / "env-llm-compressor" / "bin" / "python"
ROUNDS = 3


def call(who: str, model: Path, windows: Path, out: Path | None, *words: str) -> dict:
    """One call in a process of its own; what it printed."""
    python = sys.executable if who == "thrifty" else str(PEER)
    script = HERE / "peers" / ("thrifty_call.py" if who == "thrifty" else "llm_compressor.py")
    place = ["--out", str(out)] if out is not None else []
    environment = dict(os.environ)
    if who != "thrifty":
        environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, script, model, windows, *place, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# -- quality -------------------------------------------------------------------------------------------------------------


def quality() -> dict:
    """Both peers' results on the embedded model against the original and against each other."""
    from thrifty.data import default_model, load_rows
    from thrifty.models import open_model
    from thrifty.runtime import load

    model = default_model()
    source = open_model(model)
    rows = {
        purpose: load_rows(
            folder=model, config=source.config, kind="causal_lm", purpose=purpose, text=(), samples=samples, tokens=512, seed=0
        )
        for purpose, samples in (("calibration", 128), ("evaluation", 128))
    }
    windows = BUILD / "windows-embedded.safetensors"
    save_file({"input_ids": rows["calibration"].inputs["input_ids"].contiguous()}, windows)
    held_out = rows["evaluation"].inputs["input_ids"]
    results = {}
    requests = {
        "gptq 4 bit symmetric": (),
        "gptq 4 bit asymmetric": ("--asymmetric",),
        "gptq 3 bit symmetric": ("--bits", "3"),
        "gptq 3 bit asymmetric": ("--bits", "3", "--asymmetric"),
        "sparsegpt 50 %": ("--method", "sparsegpt"),
    }
    original = load(model, dtype=torch.float32)
    expected = logits_of(original, held_out)
    for name, words in requests.items():
        for who in ("thrifty", "llm-compressor"):
            out = BUILD / "quality" / who / name.replace(" ", "-").replace("%", "percent")
            shutil.rmtree(out, ignore_errors=True)
            call(who, model, windows, out, *words)
            if who != "thrifty":
                drop_scheme(out)
            results[who, name] = scores(expected, logits_of(load(out, dtype=torch.float32), held_out), held_out)
    return {
        "model": source.anatomy.architecture,
        "calibration": {"rows": 128, "tokens": 65536, "digest": rows["calibration"].digest},
        "evaluation": {"rows": int(held_out.shape[0]), "tokens": int(held_out.numel()), "digest": rows["evaluation"].digest},
        "rows": [verdict(name, results) for name in requests],
        "better_of_symmetric_and_asymmetric": [best(results, bits) for bits in (4, 3)],
    }


def drop_scheme(folder: Path) -> None:
    """The peer writes rounded weights as plain ones and leaves its scheme in the config, which readers would apply again."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))


def logits_of(model: torch.nn.Module, tokens: Tensor) -> list[Tensor]:
    """Logits by batches of windows."""
    with torch.inference_mode():
        return [model(input_ids=part).logits for part in tokens.split(8)]


def scores(before: list[Tensor], after: list[Tensor], tokens: Tensor):
    """Scores of each window, paired with the original's."""
    from thrifty.measure.language import WindowScores, causal_targets, score_windows

    parts = zip(before, after, tokens.split(8), strict=True)
    return WindowScores.joined([score_windows(left, right, causal_targets(part)) for left, right, part in parts])


def figures(found) -> dict:
    """Perplexity and KL divergence of one result."""
    from thrifty.measure.intervals import mean_interval, perplexity

    return {
        "perplexity_before": perplexity(found.nll_before, found.tokens).to_json(),
        "perplexity": perplexity(found.nll_after, found.tokens).to_json(),
        "kl": mean_interval(found.kl, found.tokens).to_json(),
    }


def beside(ours, theirs) -> dict:
    """Ours minus theirs on the same windows; negative is better for us."""
    from thrifty.measure.intervals import mean_interval, perplexity_difference

    return {
        "perplexity_difference": perplexity_difference(theirs.nll_after, ours.nll_after, ours.tokens).to_json(),
        "kl_difference": mean_interval(ours.kl - theirs.kl, ours.tokens).to_json(),
    }


def verdict(name: str, results: dict) -> dict:
    """One request, both peers."""
    ours, theirs = results["thrifty", name], results["llm-compressor", name]
    return {
        "request": name,
        "thrifty": figures(ours),
        "llm-compressor": figures(theirs),
        "thrifty minus llm-compressor": beside(ours, theirs),
    }


def best(results: dict, bits: int) -> dict:
    """The better setting of each, by KL divergence, against each other."""
    names = [f"gptq {bits} bit {kind}" for kind in ("symmetric", "asymmetric")]
    chosen = {who: min(names, key=lambda name: float(results[who, name].kl.sum())) for who in ("thrifty", "llm-compressor")}
    ours, theirs = results["thrifty", chosen["thrifty"]], results["llm-compressor", chosen["llm-compressor"]]
    return {"bits": bits, "settings": chosen, "thrifty minus llm-compressor": beside(ours, theirs)}


# -- time and memory -----------------------------------------------------------------------------------------------------


def cost() -> dict:
    """Time and peak memory of both on the 300-million-parameter checkpoint, in turns."""
    model = BUILD / "llama-300m"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "random_llama.py", model], check=True)
    rows = []
    for count in (8, 128):
        windows = BUILD / f"windows-{count * 512}.safetensors"
        tokens = torch.randint(3, 2048, (count, 512), generator=torch.Generator().manual_seed(0))
        save_file({"input_ids": tokens}, windows)
        for method in ("gptq", "sparsegpt"):
            if method == "sparsegpt" and count > 8:
                continue
            rows.append(in_turns(model, windows, count * 512, method))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {"model": "random Llama, 314 million parameters, bfloat16", "rows": rows, "flop_rate": flop_rate()}


def in_turns(model: Path, windows: Path, tokens: int, method: str) -> dict:
    """Calls of both in turns; medians, and the ratio of each round."""
    out = BUILD / "cost"
    found: dict[str, list[dict]] = {"thrifty": [], "llm-compressor": []}
    for _ in range(ROUNDS):
        for who in found:
            shutil.rmtree(out, ignore_errors=True)
            batch = ("--batch", "8") if who == "llm-compressor" else ()
            found[who].append(call(who, model, windows, out if who == "thrifty" else None, "--method", method, *batch))
    shutil.rmtree(out, ignore_errors=True)
    pairs = list(zip(found["thrifty"], found["llm-compressor"], strict=True))
    return {
        "method": method,
        "tokens": tokens,
        **{who: middle(calls) for who, calls in found.items()},
        "call_ratio": statistics.median(ours["call_seconds"] / theirs["call_seconds"] for ours, theirs in pairs),
        "solve_ratio": statistics.median(ours["phases"]["solve"] / theirs["phases"]["solve"] for ours, theirs in pairs),
        "whole_command_ratio": statistics.median(ours["total_seconds"] / theirs["total_seconds"] for ours, theirs in pairs),
        "peak_ratio": statistics.median(ours["peak_bytes"] / theirs["peak_bytes"] for ours, theirs in pairs),
        "rounds": ROUNDS,
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
    part = parser.parse_args().part
    found = quality() if part == "quality" else cost()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{part}_llm_compressor.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
