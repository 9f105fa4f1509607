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
from tests.report.samples import certificate
from thrifty.base import events
from thrifty.measure.certificate import Certificate
from thrifty.report.compare import Comparison, Result

INTERVAL = {"value": 10.0, "low": 9.5, "high": 10.5}


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
def small(tmp_path: Path) -> Path:
    """A result folder that holds a certificate."""
    folder = tmp_path / "small"
    folder.mkdir()
    certificate(warnings=["layer 8 is [far] out of line"]).write(folder)
    return folder


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, small: Path) -> types.ModuleType:
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

    paper = {"authors": "Frantar, Alistarh", "year": 2022, "title": "GPTQ", "arxiv": "2210.17323"}
    entry = {"name": "gptq", "family": "weights.preset", "paper": paper, "summary": "Rounds column by column."}
    entry["parameters"] = {"bits": {"type": "integer", "minimum": 2, "maximum": 8, "default": 4}}
    sides = {side: {"text": f"the {side} text", "tokens_per_second": 5.0} for side in ("original", "result")}
    answers = {
        "compress": Certificate.read(small).result(small),
        "plan": Plan(),
        "describe": anatomy(),
        "evaluate": {"perplexity": INTERVAL, "tokens": 1000},
        "compare": Comparison((Result("a", certificate()), Result("b", certificate(bits_per_weight=8.0))), ("read with [care]",)),
        "export": {"out": "small-gguf", "format": "gguf", "bytes": 1000, "exact": True},
        "repeat": {"out": "again", "same": True, "files": []},
        "try_out": {"prompt": "def", **sides},
        "doctor": {"versions": {"torch": "2.13.0"}, "cores": 2, "problems": []},
        "methods": [entry],
    }
    for name, value in answers.items():
        setattr(fake, name, answer(name, value))
    one, every = answer("methods", {**entry, "explanation": "Rounds.\n\n    min tr(E G E^T)\n"}), fake.methods  # type: ignore[attr-defined]
    fake.methods = lambda name: every(name) if name is None else one(name)  # type: ignore[attr-defined]
    found = {"layers": [{"name": "a", "alpha": 2.5}], "blocks": [{"block": 0, "alpha": 2.5}], "picture": None}
    fake.inspecting = types.SimpleNamespace(spectra=answer("spectra", found))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "thrifty.api", fake)
    monkeypatch.setattr(thrifty, "api", fake, raising=False)
    return fake
