"""How fast the original and the result run, and what both write when they go on by themselves.

Both are in memory for that, which is more than a run takes. So they are timed here only where they fit into what the run took anyway or
are small, and otherwise in a process of its own, where the machine has that much free: if the system stops that one, the result is still
there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from thrifty.base import events
from thrifty.base.memory import return_free_memory
from thrifty.data import Rows
from thrifty.measure.continuation import same_continuation
from thrifty.measure.hardware import free_bytes
from thrifty.measure.speed import measure_forward, measure_speed
from thrifty.models import Source, open_model
from thrifty.runtime.load import load, load_source

PROMPT, NEW = 128, 64
"""Tokens that are read at once, and tokens that are generated."""

ROUNDS = 3

PROMPTS, CONTINUED = 16, 32
"""Prompts that both go on from, and tokens that each writes."""

SMALL = 32 << 20
"""Bytes that are never worth a process of its own."""

PATIENCE = 300
"""Seconds that a process of its own may take."""

MARGIN = 512 << 20
"""Bytes that a process of its own needs beside the models, about."""


def side_by_side(source: Source, result: Path, rows: Rows, room: int, seed: int) -> dict[str, Any]:
    """{speed, quality}: see `measure.speed` and `measure.continuation`; empty, and a note that says why, where both do not fit.

    room: bytes that this process may take. Language models generate after the beginnings of evaluation rows; others take one such row.
    """
    inputs = {name: tensor[:PROMPTS].contiguous() for name, tensor in rows.inputs.items()}
    needed = memory_needed(source)
    if needed <= max(room, SMALL):
        return _measured(source, result, inputs, seed)
    free = free_bytes()
    if needed + MARGIN > free:
        gigabytes = f"{(needed + MARGIN) / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        events.note(f"speed was not measured: both models together need {gigabytes}")
        return {}
    return _apart(source, result, inputs, seed)


def memory_needed(source: Source) -> int:
    """Bytes of the original, of the result at most as much again, and of the largest matrix while it is packed for the kernels."""
    largest = max((linear.out_features * linear.in_features for linear in source.anatomy.linears), default=0)
    return 2 * sum(info.bytes for info in source.tensors.values()) + 12 * largest


def _measured(source: Source, result: Path, inputs: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    models = {"before": load_source(source), "after": load(result, trust_remote_code=source.remote_code is not None)}
    if source.anatomy.kind == "causal_lm" and "input_ids" in inputs and all(model.can_generate() for model in models.values()):
        half = max(1, inputs["input_ids"].shape[1] // 2)
        prompts = inputs["input_ids"][:, : min(PROMPT, half)]
        timed = measure_speed(models, prompts[:1], new_tokens=max(2, min(NEW, half)), rounds=ROUNDS)
        quality = [same_continuation(**models, prompts=prompts, new_tokens=min(CONTINUED, half), seed=seed)]
    else:
        timed = measure_forward(models, {name: tensor[:1] for name, tensor in inputs.items()}, rounds=ROUNDS)
        quality = []
    del models
    return_free_memory()
    return {"speed": timed, "quality": quality}


def _apart(source: Source, result: Path, inputs: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    """The same in another process."""
    file = result.with_name("speed.safetensors")
    save_file(dict(inputs), file)
    request = {
        "original": str(source.folder),
        "allow_pickle": source.pickled,
        "trust_remote_code": source.remote_code is not None,
        "result": str(result),
        "inputs": str(file),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    try:
        words = [sys.executable, "-m", __name__, json.dumps(request)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        events.note(f"speed was not measured: {ROUNDS} rounds of both models take longer than {PATIENCE} s")
        return {}
    finally:
        file.unlink(missing_ok=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it was stopped with code {done.returncode}"])[-1]
        events.note(f"speed was not measured: {last}")
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def _main(request: dict[str, Any]) -> None:
    torch.set_num_threads(request["threads"])
    source = open_model(request["original"], allow_pickle=request["allow_pickle"], trust_remote_code=request["trust_remote_code"])
    print(json.dumps(_measured(source, Path(request["result"]), load_file(request["inputs"]), request["seed"])))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
