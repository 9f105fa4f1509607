"""Tokens a second of whole models, side by side: prefill and decode inside transformers' `generate`.

The models take turns, so that a busy machine slows both; the first round of each is left out, and the median of the others counts. Times
of one machine at one batch and length say nothing of others, so both are recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from thrifty.base import events
from thrifty.base.errors import InputError


class _Clock:
    """A logits processor that notes when each token's logits are there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        self.times.append(_now(self.device))
        return scores


def measure_speed(
    models: Mapping[str, nn.Module], prompt: Int[Tensor, "batch length"], *, new_tokens: int = 64, rounds: int = 5, warmup: int = 1
) -> dict[str, Any]:
    """Median prefill and decode speed of each model, tokens a second over the whole batch.

    models: by name (`before`, `after`). Greedy generation of exactly `new_tokens` tokens; prefill is the time to the first token's logits,
    decode the time between the first and the last.
    Keys: prefill_tokens_per_second and decode_tokens_per_second {name: value}, batch, prompt_tokens, new_tokens, rounds, threads, device.
    Raises InputError for fewer than 2 new tokens, no round, or a model that does not generate.
    """
    if new_tokens < 2 or rounds < 1:
        raise InputError(f"speed needs at least 2 new tokens and 1 round, got {new_tokens} and {rounds}")
    for name, model in models.items():
        if not hasattr(model, "generate"):
            raise InputError(f"the model {name!r} ({type(model).__name__}) does not generate text; its speed is that of `measure_forward`")
    batch, length = prompt.shape

    def round_of(model: nn.Module) -> tuple[float, float]:
        prefill, decode = _generate(model, prompt, new_tokens)
        return batch * length / prefill, batch * (new_tokens - 1) / decode

    speeds = _take_turns({name: lambda model=model: round_of(model) for name, model in models.items()}, rounds, warmup)
    return {
        "prefill_tokens_per_second": {name: median(pair[0] for pair in found) for name, found in speeds.items()},
        "decode_tokens_per_second": {name: median(pair[1] for pair in found) for name, found in speeds.items()},
        "batch": batch,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        **_conditions(models, rounds),
    }


def measure_forward(models: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], *, rounds: int = 5, warmup: int = 1) -> dict[str, Any]:
    """Median rows a second of one forward pass of each model: for models that do not generate.

    Keys: rows_per_second {name: value}, batch, rounds, threads, device.
    """
    rows = next(iter(inputs.values())).shape[0]

    def round_of(model: nn.Module) -> tuple[float]:
        device = _device(model)
        placed = {name: tensor.to(device) for name, tensor in inputs.items()}
        start = _now(device)
        with torch.inference_mode():
            model(**placed)
        return (rows / (_now(device) - start),)

    speeds = _take_turns({name: lambda model=model: round_of(model) for name, model in models.items()}, rounds, warmup)
    return {
        "rows_per_second": {name: median(pair[0] for pair in found) for name, found in speeds.items()},
        "batch": rows,
        **_conditions(models, rounds),
    }


def _generate(model: nn.Module, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """(seconds to the first logits, seconds from there to the last)."""
    device = _device(model)
    prompt, clock = prompt.to(device), _Clock(device)
    start = _now(device)
    with torch.inference_mode():
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=[clock],
            pad_token_id=0,
        )
    if len(clock.times) < 2:
        raise InputError(f"the model generated {len(clock.times)} tokens of {new_tokens}; its speed cannot be told")
    return clock.times[0] - start, (clock.times[-1] - clock.times[0]) * (new_tokens - 1) / (len(clock.times) - 1)


def _take_turns(runs: Mapping[str, Callable[[], tuple[float, ...]]], rounds: int, warmup: int) -> dict[str, list[tuple[float, ...]]]:
    """Figures of `rounds` rounds by name, the runs interleaved, after `warmup` rounds that do not count."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    with events.task("speed", rounds + warmup) as advance:
        for turn in range(rounds + warmup):
            for name, run in runs.items():
                figures = run()
                if turn >= warmup:
                    found[name].append(figures)
            advance(turn + 1, "")
    return found


def _conditions(models: Mapping[str, nn.Module], rounds: int) -> dict[str, Any]:
    device = _device(next(iter(models.values())))
    return {"rounds": rounds, "threads": torch.get_num_threads(), "device": device.type}


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
