"""The rows a run needs: what fits the kind of model and the purpose, from what the user named or from what is in the package."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
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
from thrifty.data.labels import class_labels
from thrifty.data.rows import Rows
from thrifty.data.spans import Piece, Span, join, marked, spans
from thrifty.data.text import read_documents
from thrifty.data.tokenizer import check_vocabulary, frame, load_tokenizer, tokenise
from thrifty.data.windows import draw_windows, even_windows, sliding_windows

SAMPLES = {"calibration": 128, "evaluation": 64}
TOKENS = 512
MASKED_SHARE = 0.15
_OPTIONS = {"calibration": "--calibration FOLDER", "evaluation": "--evaluation FOLDER (--images FOLDER of `thrifty evaluate`)"}
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
    stride: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    exclude: Collection[Span] = (),
    share: float = 1.0,
) -> Rows:
    """Rows for a model, the same for the same arguments.

    folder: the model's, with its tokenizer and processor. config: its transformers configuration.
    text: names of texts (see `text.read_documents`), taken one after the other; without any, the text inside the package.
    images: a folder of images, for models that see. samples: rows, by default 128 to calibrate on and 64 to judge on.
    tokens: length of a row, special tokens included, by default 512 or what the model was trained for, if that is less.
    stride: to judge on windows that begin so many tokens apart, each scored where no window before it was: all windows of the text unless
        `samples` says how many; the targets of the rows say what is scored. Rows lie side by side where it is left out or equals `tokens`.
    exclude: `used` of other rows; no token and no image of theirs is taken. share: of the images of a folder, the part taken at most.

    Language models get windows of the text: drawn at random to calibrate on, evenly spread to judge on; each begins with the special
    tokens that the tokenizer puts before a text, if any. To judge a masked language model, 15 % of the tokens of each row are masked.
    Raises InputError for whatever cannot be right, before any model is run.
    """
    if stride is not None and kind != "causal_lm":
        raise InputError(f"a stride slides over a text that a model continues; leave it out for {folder}, which is no such model ({kind}).")
    if kind in ("causal_lm", "masked_lm"):
        return _text_rows(folder, config, kind, purpose, text, samples, tokens, stride, seed, trust_remote_code, exclude)
    if kind == "diffusion":
        words = "latents, time steps and what they are conditioned on"
        raise InputError(f"{folder} takes {words}, which no file here holds; make them yourself and give them as Rows.of({{...}}).")
    if kind == "other":
        raise InputError(f"{folder}: the inputs of this kind of model are not known; make them yourself and give them as Rows.of({{...}}).")
    if images is None:
        raise InputError(f"{folder} sees images, so it needs a folder of .png or .jpg files for the {purpose}: {_OPTIONS[purpose]}.")
    paths, ids = choose_images(images, purpose, samples, seed, {name for name, _, _ in exclude}, share)
    used = tuple((str(path.resolve()), 0, 1) for path in paths)
    if kind == "vision":
        rows = image_rows(folder, paths, ids, images, trust_remote_code)
        labels = class_labels(images, ids, config) if purpose == "evaluation" else None
        return replace(rows, labels=labels, used=used)
    lines = _lines(text, purpose)
    if kind == "dual_encoder":
        rows = pair_rows(folder, paths, ids, images, lines, _length(folder, config, tokens), trust_remote_code)
    else:
        rows = prompt_rows(folder, paths, ids, images, lines[0] if lines else None, trust_remote_code)
    check_vocabulary(rows.inputs["input_ids"], _vocabulary(config), "the texts beside the images")
    return replace(rows, used=used)


def _text_rows(
    folder: Path,
    config: Any,
    kind: Kind,
    purpose: Purpose,
    text: Sequence[str],
    samples: int | None,
    tokens: int | None,
    stride: int | None,
    seed: int,
    trust_remote_code: bool,
    exclude: Collection[Span],
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
    if stride is not None and not 1 <= stride <= length:
        raise InputError(f"the stride must be from 1 to {length}, the tokens of a row; got {stride}.")
    inner = length - len(prefix) - len(suffix)
    if inner < 1:
        raise InputError(f"rows of {length} tokens leave no room for text beside the tokenizer's special tokens; ask for more tokens.")
    with events.task("reading text"):
        texts = [tokenise(tokenizer, read_documents(name, purpose, tokenizer), _vocabulary(config), source) for name in names]
        sequence, pieces = join(texts, tokenizer.eos_token_id)
    used = marked(pieces, sequence.numel(), exclude)
    count = SAMPLES[purpose] if samples is None else samples
    try:
        if stride is not None and stride != length:
            return _sliding(sequence, pieces, samples, inner, stride, used, prefix, source)
        if purpose == "calibration":
            windows, starts = draw_windows(sequence, count, inner, seed, used)
        else:
            windows, starts = even_windows(sequence, count, inner, used)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    targets = None
    if kind == "masked_lm" and purpose == "evaluation":
        windows, targets = mask_tokens(windows, tokenizer.mask_token_id, seed)
        targets = _surround(targets, (-100,) * len(prefix), (-100,) * len(suffix))
    ids, taken = tuple((starts // inner).tolist()), spans(pieces, starts.tolist(), inner)
    return Rows({"input_ids": _surround(windows, prefix, suffix)}, ids, source, targets, used=taken)


def _sliding(
    sequence: Int64[Tensor, "count"],
    pieces: Sequence[Piece],
    samples: int | None,
    length: int,
    stride: int,
    used: Tensor,
    prefix: Sequence[int],
    source: str,
) -> Rows:
    """Overlapping rows with the targets that each of them scores; a text shorter than one window is one short row."""
    length = min(length, max(2, sequence.numel()))
    windows, starts, new = sliding_windows(sequence, samples, length, min(stride, length - 1), used)
    inputs = _surround(windows, prefix, ())
    targets = torch.full_like(inputs, -100)
    targets[:, :-1] = inputs[:, 1:]
    place = torch.arange(inputs.shape[1]) + 1 - len(prefix)  # of the token that each position predicts, in the window
    targets = targets.masked_fill(place < new[:, None], -100)
    return Rows({"input_ids": inputs}, tuple(starts.tolist()), source, targets, used=spans(pieces, starts.tolist(), length))


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
