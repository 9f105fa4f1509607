"""A stand-in for the functions behind the commands."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import thrifty
from tests.recipe.shapes import anatomy
from thrifty.base import events

INTERVAL = {"value": 10.0, "low": 9.5, "high": 10.5}
RESULT = {
    "model": "original",
    "out": Path("small"),
    "recipe": {"steps": [{"gptq": {"bits": 4}}]},
    "seed": 0,
    "seconds": 12.5,
    "peak_rss_bytes": 123456789,
    "bytes": {"before": 2_000_000, "after": 600_000},
    "bits_per_weight": 4.5,
    "perplexity": {"before": INTERVAL, "after": {"value": 10.2, "low": 9.7, "high": 10.7}},
    "kl": {"value": 0.01, "low": 0.009, "high": 0.011},
    "top1_agreement": 0.97,
    "quality": [
        {"metric": "perplexity_ratio", "before": 1.0, "after": 1.02, "difference": 0.02, "low": 0.015, "high": 0.025},
        {"metric": "flips", "before": 0.0, "after": 0.03, "difference": 0.03, "low": 0.02, "high": 0.04},
    ],
    "speed": {"decode_tokens_per_second": {"before": 10.0, "after": 20.0}},
    "layers": [
        {"name": f"layers.{i}", "method": "gptq", "bits": 4.5, "sparsity": 0.0, "error": 0.1, "relative_error": i / 100} for i in range(9)
    ],
    "warnings": ["layer layers.8 is [far] out of line"],
}


class Plan:
    def to_json(self) -> dict[str, Any]:
        parts = {"gram": 10**8, "weights": 9 * 10**8}
        return {
            "model": "original",
            "steps": [{"step": 1, "method": "gptq", "linears": 14}],
            "cost": {"memory": 10**9, "disk": 5 * 10**6, "output": 3 * 10**6, "seconds": 3.0, "parts": parts},
            "refusals": ["the run needs 1.00 GB and 0.50 GB are free; lower --samples"],
        }


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for the functions behind the commands; each records its last call and answers at once."""
    fake = types.ModuleType("thrifty.api")
    fake.calls = {}  # type: ignore[attr-defined]

    def answer(name: str, value: Any) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            fake.calls[name] = (words, options)  # type: ignore[attr-defined]
            with events.task("blocks", 2) as advance:
                advance(1, "model.layers.0")
                events.note("awq + gptq, 4 bit, group 32")
                events.warn("an expert saw few tokens")
                advance(2, "")
            return value

        return call

    entry = {"name": "gptq", "family": "weights.preset", "paper": "Frantar et al. (2022)", "summary": "Rounds column by column."}
    parameters = {"bits": {"type": "integer", "minimum": 2, "maximum": 8, "default": 4}}
    sides = {side: {"text": f"the {side} text", "tokens_per_second": 5.0} for side in ("original", "result")}
    answers = {
        "compress": RESULT,
        "plan": Plan(),
        "describe": anatomy(),
        "evaluate": {"perplexity": INTERVAL, "tokens": 1000},
        "compare": {"results": [{"folder": "a", "bits_per_weight": 4.5}, {"folder": "b", "bits_per_weight": 8.0}]},
        "export": {"out": "small-gguf", "format": "gguf", "bytes": 1000, "exact": True},
        "repeat": {"out": "again", "same": True, "files": []},
        "try_out": {"prompt": "def", **sides},
        "doctor": {"versions": {"torch": "2.13.0"}, "cores": 2, "problems": []},
        "methods": [{**entry, "parameters": parameters}],
    }
    for name, value in answers.items():
        setattr(fake, name, answer(name, value))
    monkeypatch.setitem(sys.modules, "thrifty.api", fake)
    monkeypatch.setattr(thrifty, "api", fake, raising=False)
    return fake
