"""The tokenizer of a model folder, and texts turned into one sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import AutoTokenizer

from thrifty.base.errors import InputError


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer itself puts before and after every text (`[CLS]` and `[SEP]`, or a `<bos>` alone)."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a model folder; nothing is downloaded. Raises InputError where there is none or where it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # a broken or missing file surfaces as almost any type: OSError, KeyError, TypeError, tokenizers' own
        files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
        if not any((folder / name).is_file() for name in files):
            raise InputError(
                f"{folder} has no tokenizer (none of {', '.join(files)}); copy the tokenizer files of the model into it."
            ) from error
        raise InputError(
            f"the tokenizer in {folder} cannot be loaded: {_first_line(error)}; copy its files again from the model."
        ) from error


def frame(tokenizer: Any) -> Frame:
    """What the tokenizer puts around a text, found by tokenising a word with and without it."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return Frame(tuple(full[:start]), tuple(full[start + len(bare) :]))
    return Frame()


def tokenise(tokenizer: Any, documents: Sequence[str], vocabulary: int | None, source: str) -> Int64[Tensor, "count"]:
    """The tokens of all documents in one sequence; of several, each begins after an end-of-text token, where the tokenizer has one.

    vocabulary: rows of the model's embedding, or None if unknown. Raises InputError, naming `source`, for a token beyond it.
    """
    between = [] if tokenizer.eos_token_id is None or len(documents) == 1 else [tokenizer.eos_token_id]
    pieces: list[int] = []
    for ids in tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]:
        pieces.extend([*between, *ids])
    tokens = torch.tensor(pieces, dtype=torch.int64)
    check_vocabulary(tokens, vocabulary, source)
    return tokens


def check_vocabulary(tokens: Int64[Tensor, "..."], vocabulary: int | None, source: str) -> None:
    """Raise InputError if a token has no row in the model's embedding."""
    if vocabulary is not None and tokens.numel() and int(tokens.max()) >= vocabulary:
        raise InputError(
            f"the tokenizer gives token {int(tokens.max())} for {source}, but the model's vocabulary has {vocabulary} entries; "
            "tokenizer and model do not belong together, so use the tokenizer files that came with this model."
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
