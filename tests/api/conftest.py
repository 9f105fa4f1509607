"""A tiny language model with a tokenizer, two texts, and one result of it that several tests look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import thrifty
from tests.cli.test_bad_input import add_tokenizer, text
from tests.tiny import tiny

WINDOWS = {"samples": 8, "tokens": 16}


@dataclass(frozen=True)
class Bench:
    """model: a folder. train, test: texts. recipe: a recipe for them as plain values. result: what `compress` made of them in `out`."""

    model: Path
    train: Path
    test: Path
    recipe: Mapping[str, Any]
    out: Path
    result: Mapping[str, Any]

    @property
    def request(self) -> dict[str, Any]:
        """The arguments of `compress` that gave the result, but for the folder."""
        return {"model": self.model, "recipe": self.recipe, "calibration": str(self.train), **WINDOWS}


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    base = tmp_path_factory.mktemp("bench")
    model, train, test = base / "model", base / "train.txt", base / "test.txt"
    add_tokenizer(tiny("llama", model))
    text(train)
    test.write_text("".join(f"def f{number}(x): return x + {number * 7}\n" for number in range(60)))
    recipe = {"evaluation": {"text": str(test), "samples": 4, "tokens": 16}, "steps": [{"gptq": {"bits": 4, "group_size": 32}}]}
    result = thrifty.compress(model, recipe, str(train), out=base / "out", **WINDOWS)
    return Bench(model, train, test, recipe, base / "out", result)
