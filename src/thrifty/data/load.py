"""The rows a run needs: what fits the kind of model and the purpose, from what the user named or from what is in the package."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from thrifty.base import events
from thrifty.base.anatomy import Kind
from thrifty.base.errors import InputError
from thrifty.data.embedded import EMBEDDED, Purpose
from thrifty.data.images import choose_images, image_rows, pair_rows, prompt_rows
from thrifty.data.rows import Rows
from thrifty.data.text import read_documents
from thrifty.data.tokenizer import check_vocabulary, frame, load_tokenizer, tokenise
from thrifty.data.windows import draw_windows, even_windows

SAMPLES = {"calibration": 128, "evaluation": 64}
TOKENS = 512
MASKED_SHARE = 0.15
_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len")


def load_rows(
    *,
    folder: Path,
    config: Any,
    kind: Kind,
    purpose: Purpose,
    text: Sequence[str] = (),
    images: str | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    exclude: Collection[int | str] = (),
) -> Rows:
    """Rows for a model, the same for the same arguments.

    folder: the model's, with its tokenizer and processor. config: its transformers configuration.
    text: names of texts (see `text.read_documents`), taken one after the other; without any, the text inside the package.
    images: a folder of images, for models that see. samples: rows, by default 128 to calibrate on and 64 to judge on.
    tokens: length of a row, special tokens included, by default 512 or what the model was trained for, if that is less.
    exclude: ids of rows that are already used, never chosen again. Ids of windows mean the same only for the same texts and `tokens`.

    Language models get windows of the text: drawn at random to calibrate on, evenly spread to judge on; each begins with the special
    tokens that the tokenizer puts before a text, if any. To judge a masked language model, 15 % of the tokens of each row are masked.
    Raises InputError for whatever cannot be right, before any model is run.
    """
    if kind in ("causal_lm", "masked_lm"):
        return _windows(folder, config, kind, purpose, text, samples, tokens, seed, trust_remote_code, exclude)
    if kind == "other":
        raise InputError(f"{folder}: the inputs of this kind of model are not known; make them yourself and give them as Rows.of({{...}}).")
    if images is None:
        raise InputError(f"{folder} sees images, so it needs a folder of .png or .jpg files: --{purpose} FOLDER.")
    paths, ids = choose_images(images, purpose, samples, seed, exclude)
    if kind == "vision":
        return image_rows(folder, paths, ids, images, trust_remote_code)
    lines = _lines(text, purpose)
    if kind == "dual_encoder":
        rows = pair_rows(folder, paths, ids, images, lines, _length(folder, config, tokens), trust_remote_code)
    else:
        rows = prompt_rows(folder, paths, ids, images, lines[0] if lines else None, trust_remote_code)
    check_vocabulary(rows.inputs["input_ids"], _vocabulary(config), "the texts beside the images")
    return rows


def _windows(
    folder: Path,
    config: Any,
    kind: Kind,
    purpose: Purpose,
    text: Sequence[str],
    samples: int | None,
    tokens: int | None,
    seed: int,
    trust_remote_code: bool,
    exclude: Collection[int | str],
) -> Rows:
    """Rows of a language model."""
    tokenizer = load_tokenizer(folder, trust_remote_code)
    if kind == "masked_lm" and tokenizer.mask_token_id is None:
        raise InputError(
            f"the tokenizer in {folder} has no mask token, which a masked language model needs; use the model's own tokenizer."
        )
    names = tuple(text) or (EMBEDDED,)
    source = ", ".join(f"the {purpose} text inside the package" if name == EMBEDDED else name for name in names)
    # An encoder's tokenizer knows the longest text; its position table may hold reserved rows (RoBERTa's has two).
    length = _length(folder, config, tokens, tokenizer.model_max_length if kind == "masked_lm" else None)
    around = frame(tokenizer)
    prefix, suffix = around.prefix, around.suffix if kind == "masked_lm" else ()
    inner = length - len(prefix) - len(suffix)
    if inner < 1:
        raise InputError(f"rows of {length} tokens leave no room for text beside the tokenizer's special tokens; ask for more tokens.")
    with events.task("reading text"):
        documents = [document for name in names for document in read_documents(name, purpose, tokenizer)]
        sequence = tokenise(tokenizer, documents, _vocabulary(config), source)
    count = SAMPLES[purpose] if samples is None else samples
    taken = {identity for identity in exclude if isinstance(identity, int)}
    try:
        if purpose == "calibration":
            windows, starts = draw_windows(sequence, count, inner, seed, taken)
        else:
            windows, starts = even_windows(sequence, count, inner, taken)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    ids = tuple((starts // inner).tolist())
    targets = None
    if kind == "masked_lm" and purpose == "evaluation":
        windows, targets = mask_tokens(windows, tokenizer.mask_token_id, seed)
        targets = _surround(targets, (-100,) * len(prefix), (-100,) * len(suffix))
    return Rows({"input_ids": _surround(windows, prefix, suffix)}, ids, source, targets)


def mask_tokens(
    windows: Int64[Tensor, "rows length"], mask: int, seed: int
) -> tuple[Int64[Tensor, "rows length"], Int64[Tensor, "rows length"]]:
    """Windows with 15 % of the tokens of each row (rounded, at least one) replaced by the mask token, and what stood there.

    Targets are -100 wherever nothing was masked. All chosen tokens are masked: none is kept or replaced by another, as in training.
    """
    rows, length = windows.shape
    count = max(1, round(MASKED_SHARE * length))
    order = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    chosen = torch.zeros_like(windows, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return windows.masked_fill(chosen, mask), windows.masked_fill(~chosen, -100)


def _surround(windows: Tensor, prefix: Sequence[int], suffix: Sequence[int]) -> Tensor:
    """The same tokens before and after every row."""
    rows = windows.shape[0]
    return torch.cat([windows.new_tensor(prefix).expand(rows, -1), windows, windows.new_tensor(suffix).expand(rows, -1)], dim=1)


def _length(folder: Path, config: Any, tokens: int | None, also: int | None = None) -> int:
    """Tokens of a row: what was asked for, if the model was trained for it, or 512 and never more than that."""
    inner = _text_config(config)
    known = [getattr(inner, name, None) for name in _LONGEST]
    limits = [value for value in (*known, also) if isinstance(value, int) and value > 0]
    longest = min(limits, default=None)
    if tokens is None:
        return TOKENS if longest is None else min(TOKENS, longest)
    if longest is not None and tokens > longest:
        raise InputError(
            f"rows of {tokens} tokens were asked for, but {folder} was trained for at most {longest}; ask for {longest} or fewer."
        )
    return tokens


def _vocabulary(config: Any) -> int | None:
    value = getattr(_text_config(config), "vocab_size", None)
    return value if isinstance(value, int) else None


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else getattr(config, "text_config", config)


def _lines(text: Sequence[str], purpose: Purpose) -> list[str]:
    """The lines of the given texts that are not blank."""
    documents = [document for name in text for document in read_documents(name, purpose, None)]
    return [line.strip() for document in documents for line in document.splitlines() if line.strip()]
