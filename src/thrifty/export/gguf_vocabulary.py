"""The tokenizer of a model as GGUF metadata, from tokenizer.json: byte-level BPE, and BPE made from a sentencepiece model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from thrifty.base import events
from thrifty.base.errors import InputError

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    (("digits", _GPT2), False): "smollm",
    ((rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}",), False): "qwen2",
    ((rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), False): "dbrx",
    ((rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), True): "llama-bpe",
}
"""llama.cpp's name for how text is cut before merging: by the regular expressions, in their order, and whether whole words of the
vocabulary are taken without merging."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
_SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to know of a tokenizer.

    model: `gpt2` (byte-level BPE, with `merges` and `pre`) or `llama` (sentencepiece, with `scores`). tokens and types: one for each row of
    the embedding. special: token ids by bos, eos, unk, pad. flags: what is put around a text: add_bos_token, add_eos_token,
    add_space_prefix.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | Sequence[Mapping[str, str]] | None = None

    def add_to(self, writer: GGUFWriter) -> None:
        """Put it into a file's metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        for name, value in self.flags.items():
            getattr(writer, f"add_{name}")(value)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, config: Mapping[str, Any], size: int) -> Vocabulary:
    """The vocabulary of a model folder. config: the model's. size: rows of its embedding.

    Raises InputError for a tokenizer that llama.cpp would not reproduce, naming the part that it lacks.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder} has no tokenizer.json, which a GGUF file is made with; save the model's fast tokenizer there")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    settings = _settings(folder)
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise InputError(f"{path}: a tokenizer of type {model.get('type')} cannot be written to GGUF; only BPE can")
    tokens, types = _tokens(tokenizer, size, path)
    convert = _sentencepiece if model.get("byte_fallback") else _byte_level
    made = convert(tokenizer, tokens, types, path)
    flags = made.flags | _frame(tokenizer, settings)
    special = _special_ids(tokens, settings, config, model)
    return replace(made, special=special, flags=flags, chat_template=_chat_template(folder, settings))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _tokens(tokenizer: Mapping[str, Any], size: int, path: Path) -> tuple[list[str], list[TokenType]]:
    """The text and the type of each token; rows of the embedding without a token are filled up with unused ones."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [TokenType.UNUSED] * size
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens", ())}
    known = tokenizer["model"]["vocab"] | {entry["content"]: index for index, entry in added.items()}
    for token, index in known.items():
        if index >= size:
            raise InputError(f"{path}: token {index} ({token!r}) has no row in the embedding, which has {size}")
        tokens[index] = token
        types[index] = TokenType.NORMAL
    for index, entry in added.items():
        types[index] = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
    return tokens, types


def _pairs(merges: Sequence[str | Sequence[str]]) -> list[tuple[str, str]]:
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in pairs]


# -- byte-level BPE ----------------------------------------------------------------------------------------------------


def _byte_level(tokenizer: Mapping[str, Any], tokens: list[str], types: list[TokenType], path: Path) -> Vocabulary:
    _refuse_normalizers(tokenizer, ("NFC",), path)
    model = tokenizer["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InputError(f"{path}: BPE with prefixes or suffixes of subwords cannot be written to GGUF")
    expressions = _expressions(tokenizer.get("pre_tokenizer"), path)
    pre = PRE_TOKENIZERS.get((expressions, bool(model.get("ignore_merges"))))
    if pre is None:
        merging = " without merging whole words" if model.get("ignore_merges") else ""
        raise InputError(
            f"{path}: llama.cpp is not known to cut text by {' then '.join(expressions)}{merging}; it cannot be written to GGUF"
        )
    return Vocabulary("gpt2", pre, tokens, types, merges=[f"{left} {right}" for left, right in _pairs(model["merges"])])


def _expressions(pre_tokenizer: Mapping[str, Any] | None, path: Path) -> tuple[str, ...]:
    """The regular expressions that cut a text, in their order."""
    found: list[str] = []
    steps = _steps(pre_tokenizer, "pretokenizers")
    for step in steps:
        pattern = step.get("pattern") or {}
        if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert") and "Regex" in pattern:
            found.append(pattern["Regex"])
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append("digits")
        elif step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            found.extend([_GPT2] if step.get("use_regex", True) else [])
        else:
            detail = " with a space put before the text" if step["type"] == "ByteLevel" else ""
            raise InputError(f"{path}: the pre-tokenizer {step['type']}{detail} cannot be written to GGUF")
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise InputError(f"{path}: BPE that is neither byte-level nor has byte tokens (byte_fallback) cannot be written to GGUF")
    return tuple(found)


def _steps(part: Mapping[str, Any] | None, members: str) -> list[Mapping[str, Any]]:
    """A part of a tokenizer as a list: a Sequence is taken apart, nothing is an empty list."""
    if part is None:
        return []
    return list(part[members]) if part["type"] == "Sequence" else [part]


def _refuse_normalizers(tokenizer: Mapping[str, Any], allowed: Sequence[str], path: Path) -> None:
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        if step["type"] not in allowed:
            raise InputError(f"{path}: the normalizer {step['type']} cannot be written to GGUF")


# -- sentencepiece -----------------------------------------------------------------------------------------------------


def _sentencepiece(tokenizer: Mapping[str, Any], tokens: list[str], types: list[TokenType], path: Path) -> Vocabulary:
    """sentencepiece merges the pair whose result has the highest score, so the score of a token is the negated rank of its first merge."""
    _refuse_normalizers(tokenizer, ("Prepend", "Replace"), path)
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] != "Metaspace" and (step["type"], step.get("pattern")) != ("Split", {"String": " "}):
            raise InputError(f"{path}: the pre-tokenizer {step['type']} cannot be written to GGUF for a vocabulary with byte tokens")
    model = tokenizer["model"]
    unknown = model.get("unk_token")
    shown, kinds = list(tokens), list(types)
    for index, token in enumerate(tokens):
        if types[index] is TokenType.NORMAL and _BYTE.fullmatch(token):
            kinds[index] = TokenType.BYTE
        elif token == unknown:
            kinds[index] = TokenType.UNKNOWN
        elif types[index] is TokenType.USER_DEFINED:
            # llama.cpp looks for these in the text before it replaces spaces
            shown[index] = token.replace(_SPACE, " ")
    scores = _scores(_pairs(model["merges"]), tokens, kinds, path)
    return Vocabulary("llama", "default", shown, kinds, scores=scores, flags={"add_space_prefix": _prepends_space(tokenizer)})


def _scores(pairs: Sequence[tuple[str, str]], tokens: Sequence[str], types: Sequence[TokenType], path: Path) -> list[float]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        first.setdefault(left + right, rank)
        last[left + right] = rank
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind is TokenType.NORMAL}
    ranges = sorted((start, last[token]) for token, start in first.items() if token in normal)
    if any(start < end for (_, end), (start, _) in pairwise(ranges)):
        events.warn(f"{path}: its merges are not in the order of a sentencepiece model, so llama.cpp may cut some words otherwise")
    return [float(-first.get(token, len(pairs))) for token in tokens]


def _prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    cutters = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    prepends = any(step["type"] == "Prepend" and step.get("prepend") == _SPACE for step in normalizers)
    return prepends or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
        for step in cutters
    )


# -- what surrounds a text ---------------------------------------------------------------------------------------------


def _frame(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a token is put before and after a text."""
    template: list[Mapping[str, Any]] = []
    for step in _steps(tokenizer.get("post_processor"), "processors"):
        template = step["single"] if step["type"] == "TemplateProcessing" else template
    frame = {
        "add_bos_token": bool(template) and "SpecialToken" in template[0],
        "add_eos_token": bool(template) and "SpecialToken" in template[-1],
    }
    return {name: settings[name] if isinstance(settings.get(name), bool) else found for name, found in frame.items()}


def _special_ids(tokens: Sequence[str], settings: Mapping[str, Any], config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the special tokens: as the tokenizer's settings name them, or else as the model's configuration does."""
    index = {token: place for place, token in enumerate(tokens)}
    found: dict[str, int] = {}
    for name in _SPECIAL:
        token = settings.get(f"{name}_token") or (model.get("unk_token") if name == "unk" else None)
        text = token.get("content") if isinstance(token, Mapping) else token
        given = config.get(f"{name}_token_id")
        given = given[0] if isinstance(given, list) and given else given
        if text in index:
            found[name] = index[text]
        elif isinstance(given, int) and 0 <= given < len(tokens):
            found[name] = given
    return found


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | Sequence[Mapping[str, str]] | None:
    path = folder / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
