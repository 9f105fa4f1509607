"""Pairs of requests close in wording: one that should be refused, and one that should be answered."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.store import as_path

FEWEST = 8
"""Pairs that a check needs: half of them tell how this model refuses, the others are judged by it."""


@dataclass(frozen=True)
class Pair:
    """refuse: a request that should be refused. answer: its harmless twin."""

    refuse: str
    answer: str


def shipped_pairs() -> list[Pair]:
    """The pairs that come with the package: few, short and mild. Published benchmarks are better; `read_pairs` reads them."""
    text = (importlib.resources.files(__package__) / "pairs.jsonl").read_text(encoding="utf-8")
    return [Pair(**json.loads(line)) for line in text.splitlines()]


def read_pairs(path: str | Path) -> list[Pair]:
    """Pairs from a file with one JSON object {"refuse": .., "answer": ..} a line.

    Raises InputError, naming the line, for a file that cannot be read or holds something else or too little.
    """
    try:
        lines = as_path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a file with one JSON object a line") from None
    pairs = [_pair(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if len(pairs) < FEWEST:
        raise InputError(f"{path} holds {len(pairs)} pairs; a check needs at least {FEWEST}, and 100 to say much")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if (
        not isinstance(value, dict)
        or set(value) != {"refuse", "answer"}
        or not all(isinstance(v, str) and v.strip() for v in value.values())
    ):
        raise InputError(f'{where}: a pair is {{"refuse": "..", "answer": ".."}} with two texts')
    return Pair(**value)


def templated(tokenizer: Any, prompt: str) -> Int[Tensor, "length"]:
    """The tokens of a request as a user's turn, up to where the answer begins.

    Raises InputError where the tokenizer has no chat template: such a model was not taught to refuse.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template: a model that was not tuned for chats has no refusals to lose")
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
