"""What a packed cache of keys and values loses, holds and takes, beside the plain one.

Usage: python bench/cache.py [--model DIR]     (writes bench/results/cache.json; with --model only onto the screen)

Held-out windows are read as a user's text is: a prompt in one call, then token by token, all through one cache. Every token after the
prompt is scored against the plain cache's predictions, paired window by window. Everything is computed in the type of the model. `keys:
token` is the ablation: the same bits and the same plain tokens, with groups of keys along one token instead of along one channel. Time is
that of the processor, in one thread, for single tokens after a context of random tokens, the caches in turn. transformers' own
`QuantizedCache` is measured where its backend is there (`pip install --no-deps optimum-quanto ninja`).
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import torch
from judge import HERE, Judge, beside, figures, write
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, QuantizedCache
from transformers.utils import is_optimum_quanto_available

import thrifty
from thrifty.measure.hardware import hardware, versions
from thrifty.measure.language import IGNORED, WindowScores, causal_targets, score_windows
from thrifty.runtime.load import load

WINDOWS, TOKENS, PROMPT = 32, 512, 128
CONTEXTS, NEW, ROUNDS = (512, 4096), 16, 5
OURS = {
    "8 bits": "kivi: {bits: 8}",
    "4 bits": "kivi: {bits: 4}",
    "2 bits": "kivi: {bits: 2}",
    "4 bits, keys by token": "kivi: {bits: 4, keys: token}",
    "2 bits, keys by token": "kivi: {bits: 2, keys: token}",
    "2 bits, 32 plain": "kivi: {bits: 2, residual_length: 32}",
    "2 bits, 32 plain, keys by token": "kivi: {bits: 2, residual_length: 32, keys: token}",
}
THEIRS = {
    "transformers, 4 bits": {"nbits": 4},
    "transformers, 2 bits": {"nbits": 2},
    "transformers, 2 bits, groups of 32, keys by channel": {"nbits": 2, "q_group_size": 32, "axis_key": -1},
}
"""Settings of `QuantizedCache`; by default groups of 64 along a token for keys and values, and the same 128 tokens plain."""

PAIRS = (
    ("4 bits, keys by token", "4 bits"),
    ("2 bits, keys by token", "2 bits"),
    ("2 bits, 32 plain, keys by token", "2 bits, 32 plain"),
    ("transformers, 4 bits", "4 bits"),
    ("transformers, 2 bits", "2 bits"),
    ("transformers, 2 bits, groups of 32, keys by channel", "2 bits"),
)
"""Rows whose difference is shown: the first minus the second, on the same windows."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge(arguments.model, windows=WINDOWS, tokens=TOKENS)
    model = load(judge.model)
    caches = kinds(model)
    scores, rows = quality(model, caches, judge.held_out)
    for name, row in speed(model, caches).items():
        rows[name] |= row
    for name in OURS:
        rows[name]["recipe"] = OURS[name]
    found = {
        **judge.describe(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip(),
        "hardware": hardware(),
        "versions": versions(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt": PROMPT,
        "new_tokens": NEW,
        "rounds": ROUNDS,
        "rows": [{"name": name, **row} for name, row in rows.items()],
        "differences": {f"{one} minus {other}": beside(scores[one], scores[other]) for one, other in PAIRS if one in scores},
    }
    if arguments.model is None:
        write("cache.json", found)
    else:
        print(found)


def kinds(model: PreTrainedModel) -> dict[str, Callable[[], Cache]]:
    """What makes an empty cache, by name."""
    made: dict[str, Callable[[], Cache]] = {"plain": lambda: DynamicCache(config=model.config)}
    made |= {name: lambda method=method: thrifty.kv_cache(model, method) for name, method in OURS.items()}
    if is_optimum_quanto_available():
        for name, settings in THEIRS.items():
            made[name] = lambda settings=settings: QuantizedCache(backend="quanto", config=model.config, **settings)
    return made


@torch.inference_mode()
def quality(
    model: PreTrainedModel, caches: dict[str, Callable[[], Cache]], tokens: Tensor
) -> tuple[dict[str, WindowScores], dict[str, dict]]:
    """(scores of each window against the plain cache, figures and bytes), by name; the plain one itself is the first."""
    targets = causal_targets(tokens)
    targets[:, : PROMPT - 1] = IGNORED
    expected: list[Tensor] = []
    scores, rows = {}, {}
    for name, make in caches.items():
        past = make()
        parts = [tokens[:, :PROMPT], *tokens[:, PROMPT:].split(1, dim=1)]
        logits = torch.cat([model(input_ids=part, past_key_values=past).logits[:, -1:] for part in parts], dim=1)
        expected = expected or [logits]
        scores[name] = score_windows(expected[0].float(), logits.float(), targets[:, PROMPT - 1 :])
        rows[name] = figures(scores[name])
        print(name, rows[name], flush=True)
    return scores, rows


def held(past: Cache) -> int:
    """Bytes of keys and values, those of codes and what belongs to them included."""
    if not isinstance(past, QuantizedCache):
        return past.nbytes if hasattr(past, "nbytes") else sum(layer.keys.nbytes + layer.values.nbytes for layer in past.layers)
    packed = [part for layer in past.layers for part in (layer._quantized_keys, layer._quantized_values)]
    codes = sum(part._data._data.nbytes + part._scale.nbytes + part._shift.nbytes for part in packed)
    return codes + sum(layer.keys.nbytes + layer.values.nbytes for layer in past.layers)


@torch.inference_mode()
def speed(model: PreTrainedModel, caches: dict[str, Callable[[], Cache]]) -> dict[str, dict]:
    """Of each name, by context: milliseconds of the processor for a new token, the median of rounds, and bytes a token afterwards."""
    found: dict[str, dict] = {name: {"milliseconds_per_token": {}, "cache_bytes_per_token": {}} for name in caches}
    for context in CONTEXTS:
        prompt = torch.randint(3, model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
        took: dict[str, list[float]] = {name: [] for name in caches}
        for _ in range(ROUNDS):
            for name, make in caches.items():
                past = make()
                model(input_ids=prompt, past_key_values=past)
                start = process_time()
                for token in prompt[:, :NEW].split(1, dim=1):
                    model(input_ids=token, past_key_values=past)
                took[name].append((process_time() - start) / NEW)
                found[name]["cache_bytes_per_token"][str(context)] = held(past) / (context + NEW)
        for name, seconds in took.items():
            found[name]["milliseconds_per_token"][str(context)] = 1000 * median(seconds)
    return found


if __name__ == "__main__":
    main()
