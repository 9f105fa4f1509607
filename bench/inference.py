"""Speed of a 4-bit result at inference: batch 1, a prompt of 128 tokens, 64 new ones, beside bf16 transformers and llama.cpp's Q4_0.

Usage: python bench/inference.py [--rounds 5]            (writes bench/results/inference.json)

The model is the random Llama of 300 million parameters (bench/random_llama.py), the head stays dense bf16 everywhere, all use the same
threads, and the three take turns. Needs the environment of llama.cpp (bench/environments.sh llama-cpp); without it the peer is left out and
the last run with it stays in the results (`beside_llama_cpp`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import thrifty
from thrifty.data import default_model
from thrifty.export.formats import export_result
from thrifty.measure.hardware import hardware
from thrifty.measure.language import causal_targets, score_windows, summarise
from thrifty.measure.speed import measure_speed

HERE = Path(__file__).parent
BUILD = HERE / "build"
PROMPT, NEW = 128, 64
PEER = "llama.cpp Q4_0"
RECIPE = "{evaluation: {samples: 1, tokens: 32}, steps: [{rtn: {bits: 4, group_size: 32, symmetric: true}}]}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model = random_model()
    result = BUILD / "inference-w4"
    shutil.rmtree(result, ignore_errors=True)
    thrifty.compress(model, RECIPE, out=result)
    summary = {
        "model": model.name,
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        **speeds(model, result, rounds),
        "kl_of_the_fast_path": {"random model": fast_path(result, tokens(8, PROMPT + NEW)), "embedded model": embedded()},
    }
    path = HERE / "results" / "inference.json"
    path.parent.mkdir(exist_ok=True)
    summary["beside_llama_cpp"] = with_peer(summary) or (with_peer(json.loads(path.read_text())) if path.exists() else None)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def random_model() -> Path:
    """The random checkpoint, with a tokenizer so that it is a whole model folder."""
    model = BUILD / "llama-300m"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "random_llama.py", model], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(default_model() / name, model / name)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    """Random token ids [rows, length]."""
    return torch.randint(3, 1000, (rows, length), generator=torch.Generator().manual_seed(0))


def with_peer(summary: dict) -> dict | None:
    """The seconds of a run in which llama.cpp took its turn: of this one, or of the one that it remembers."""
    if PEER in summary["seconds"]:
        return {"hardware": summary["hardware"], "seconds": summary["seconds"]}
    return summary.get("beside_llama_cpp")


# -- speed ---------------------------------------------------------------------------------------------------------------


def speeds(model: Path, result: Path, rounds: int) -> dict:
    """Seconds of each, medians over the rounds, and the ratios."""
    runners = {
        "transformers bf16": AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        "thrifty 4 bit": thrifty.load(result),
    }
    peer = Peer(result)
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds + 1):
        for name, runner in runners.items():
            speed = measure_speed({name: runner}, tokens(1, PROMPT), new_tokens=NEW, rounds=1, warmup=0)
            prefill, decode = (speed[key][name] for key in ("prefill_tokens_per_second", "decode_tokens_per_second"))
            note(found, turn, name, PROMPT / prefill, (NEW - 1) / decode)
        if peer.process is not None:
            note(found, turn, PEER, *peer.round())
    peer.close()
    seconds = {name: {key: median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}
    ours = seconds["thrifty 4 bit"]
    return {
        "rounds": rounds,
        "llama_cpp_rearranges": not plain_buffers(),
        "seconds": seconds,
        "thrifty_faster_than": {
            name: {key: other[key] / ours[key] for key in other} for name, other in seconds.items() if name != "thrifty 4 bit"
        },
    }


def note(found: dict[str, list[dict[str, float]]], turn: int, name: str, prefill: float, decode: float) -> None:
    """The first round only warms up."""
    if turn:
        found.setdefault(name, []).append({"prefill": prefill, "decode": decode, "whole": prefill + decode})


def plain_buffers() -> bool:
    """Whether llama.cpp must not rearrange its weights: see bench/peers/llama_cpp.py."""
    return "amx" in Path("/proc/cpuinfo").read_text()


class Peer:
    """llama.cpp in a process of its own, answering one round a line; absent where its environment was not made."""

    def __init__(self, result: Path) -> None:
        python = BUILD / "env-llama-cpp" / "bin" / "python"
        self.process = None
        if not python.exists():
            return
        file = BUILD / "inference-w4.gguf"
        file.unlink(missing_ok=True)
        export_result(result, "gguf", file)
        words = [python, HERE / "peers" / "llama_cpp.py", "speed", file, "--prompt", PROMPT, "--new", NEW]
        words += ["--threads", torch.get_num_threads(), *(["--plain-buffers"] if plain_buffers() else [])]
        self.process = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def round(self) -> tuple[float, float]:
        """(prefill, decode) in seconds."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["prefill_seconds"], answer["decode_seconds"]

    def close(self) -> None:
        """Let it end."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


# -- what the fast path costs --------------------------------------------------------------------------------------------


def embedded() -> dict:
    """The same for the model inside the package, which has learnt something, on its held-out text."""
    from thrifty.data.load import load_rows
    from thrifty.models import open_model

    folder = default_model()
    out = BUILD / "inference-embedded"
    shutil.rmtree(out, ignore_errors=True)
    thrifty.compress(out=out)
    rows = load_rows(
        folder=folder,
        config=open_model(folder).config,
        kind="causal_lm",
        purpose="evaluation",
        text=(),
        samples=8,
        tokens=PROMPT + NEW,
        seed=0,
    )
    return fast_path(out, rows.inputs["input_ids"])


@torch.inference_mode()
def fast_path(result: Path, rows: torch.Tensor) -> dict:
    """KL divergence in nats a token from the result computed in float32: over a prompt that is read at once, and over the tokens after it,
    which are fed one by one and see what the prompt left in the cache, as in `generate`."""
    exact = thrifty.load(result, torch.float32)(input_ids=rows).logits
    fast = thrifty.load(result)
    found = torch.cat([as_generated(fast, row) for row in rows.split(1)]).float()
    targets = causal_targets(rows)
    prompt, after = targets.clone(), targets.clone()
    prompt[:, PROMPT - 1 :], after[:, : PROMPT - 1] = -100, -100
    return {name: summarise(score_windows(exact, found, counted))["kl"] for name, counted in (("prompt", prompt), ("new tokens", after))}


def as_generated(model: PreTrainedModel, row: torch.Tensor) -> torch.Tensor:
    """Logits [1, tokens, vocabulary] of a row [1, tokens]: the prompt in one call, then each token in one of its own."""
    cache = DynamicCache()
    parts = (row[:, :PROMPT], *row[:, PROMPT:].split(1, dim=1))
    return torch.cat([model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in parts], 1)


if __name__ == "__main__":
    main()
