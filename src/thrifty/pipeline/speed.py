"""How fast the original and the result run, told where it takes no more memory than the run itself did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.base import events
from thrifty.base.memory import return_free_memory
from thrifty.data import Rows
from thrifty.measure.speed import measure_forward, measure_speed
from thrifty.models import Source
from thrifty.runtime.load import load, load_source

PROMPT, NEW = 128, 64
"""Tokens that are read at once, and tokens that are generated."""

ROUNDS = 3


def speed(source: Source, result: Path, rows: Rows, room: int) -> dict[str, Any] | None:
    """Both models side by side: see `measure.speed`; None, and a note, where they do not fit into `room` bytes.

    Language models generate after the beginning of an evaluation row; others take a batch of evaluation rows.
    """
    if not memory_needed(source) <= room:
        events.note(f"speed: both models together need more memory than the run did; thrifty try {result.parent.parent} measures it")
        return None
    models = {"before": load_source(source), "after": load(result, trust_remote_code=source.remote_code is not None)}
    if source.anatomy.kind == "causal_lm" and "input_ids" in rows.inputs and all(model.can_generate() for model in models.values()):
        length = rows.inputs["input_ids"].shape[1]
        prompt = rows.inputs["input_ids"][:1, : max(1, min(PROMPT, length // 2))]
        found = measure_speed(models, prompt, new_tokens=max(2, min(NEW, length // 2)), rounds=ROUNDS)
    else:
        found = measure_forward(models, {name: tensor[:1] for name, tensor in rows.inputs.items()}, rounds=ROUNDS)
    del models
    return_free_memory()
    return found


def memory_needed(source: Source) -> int:
    """Bytes of the original, of the result at most as much again, and of the largest matrix while it is packed for the kernels."""
    largest = max((linear.out_features * linear.in_features for linear in source.anatomy.linears), default=0)
    return 2 * sum(info.bytes for info in source.tensors.values()) + 12 * largest
