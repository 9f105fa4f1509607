"""Small models of the families that llama.cpp runs, each with a tokenizer of the family's own form, trained for a moment on Python code.

A random model would hide mistakes: its perplexity is that of noise whatever is computed. A few hundred steps are enough to make every
part of the network count. Vocabularies are small, but cut text as the family's do: by its regular expression, or as sentencepiece does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hub
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from thrifty.data import embedded_text

VOCABULARY = 1024
STEPS, BATCH, LENGTH = 300, 8, 96
WINDOW = 32
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
}
GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": WINDOW}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SPACE = "\u2581"


@dataclass(frozen=True)
class Family:
    """A model class with its configuration, and how it cuts text. settings: of the configuration, beside the sizes all have."""

    model: type
    config: type
    tokenizer: Callable[[], hub.PreTrainedTokenizerFast]
    settings: Mapping[str, Any]


def write_model(family: Family, folder: Path, seed: int = 0) -> None:
    """Train the model of a family from a random start and save it with its tokenizer."""
    tokenizer = family.tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # More rows than tokens, as many models have.
    config = family.config(**SIZES | dict(family.settings), vocab_size=VOCABULARY + 64, **special)
    torch.manual_seed(seed)
    model = family.model(config)
    for parameter in model.parameters():
        if parameter.ndim < 2:  # norms and biases that are all alike would hide a mistake
            torch.nn.init.normal_(parameter, mean=float(parameter.data.mean()), std=0.1)
    train(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(model: Any, tokenizer: Any) -> None:
    """Next-token prediction on the calibration text that is inside the package."""
    tokens = torch.tensor(tokenizer(embedded_text("calibration"), add_special_tokens=False)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    model.train()
    for _ in range(STEPS):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator)
        rows = tokens[starts[:, None] + torch.arange(LENGTH)]
        if tokenizer.bos_token_id is not None:
            rows[:, 0] = tokenizer.bos_token_id
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    print(f"{type(model).__name__}: training loss {loss.item():.3f}", flush=True)


# -- tokenizers ----------------------------------------------------------------------------------------------------------

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def qwen() -> hub.PreTrainedTokenizerFast:
    """Byte-level BPE that cuts numbers into digits."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}", special)
    tokenizer.normalizer = normalizers.NFC()
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama3() -> hub.PreTrainedTokenizerFast:
    """Byte-level BPE that cuts numbers into threes and takes whole words of its vocabulary without merging."""
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer = _byte_level(rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", special, ignore_merges=True)
    _begin(tokenizer, special[0])
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])


def mistral() -> hub.PreTrainedTokenizerFast:
    """sentencepiece with a space put before a text, in the form of Llama 2 and Mistral."""
    tokenizer = _sentencepiece(["<unk>", "<s>", "</s>"], [])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    _begin(tokenizer, "<s>")
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> hub.PreTrainedTokenizerFast:
    """sentencepiece with tokens for runs of spaces and of line ends, and no space before a text."""
    runs = ["\n" * count for count in range(1, 5)] + [SPACE * count for count in range(2, 9)]
    tokenizer = _sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>"], runs)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _begin(tokenizer, "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _byte_level(pattern: str, special: list[str], ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_lines(), trainers.BpeTrainer(vocab_size=VOCABULARY - len(special), initial_alphabet=alphabet))
    tokenizer.add_special_tokens(special)
    return tokenizer


def _sentencepiece(special: list[str], runs: list[str]) -> Tokenizer:
    """Special tokens, bytes, and pieces; as in converted models, every pair that makes a piece is a merge, in the order of the pieces."""
    learner = Tokenizer(models.BPE())
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\n+"), "removed"), words])
    first = [*special, *runs, *(f"<0x{byte:02X}>" for byte in range(256))]
    learner.train_from_iterator(_lines(), trainers.BpeTrainer(vocab_size=VOCABULARY - len(first)))
    pieces = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    tokens = [*first, *(piece for piece, _ in pieces if piece not in first)]
    index = {token: number for number, token in enumerate(tokens)}
    merges = [
        (piece[:at], piece[at:])
        for piece in tokens[len(first) :]
        for at in range(1, len(piece))
        if piece[:at] in index and piece[at:] in index
    ]
    tokenizer = Tokenizer(models.BPE(index, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(runs)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _begin(tokenizer: Tokenizer, token: str) -> None:
    """Put a token before every text."""
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))])


def _lines() -> Iterator[str]:
    yield from embedded_text("calibration").splitlines(keepends=True)


FAMILIES = {
    "Llama 3": Family(hub.LlamaForCausalLM, hub.LlamaConfig, llama3, {"rope_parameters": LLAMA3}),
    "Mistral": Family(hub.MistralForCausalLM, hub.MistralConfig, mistral, {"sliding_window": None}),
    "Qwen 2": Family(hub.Qwen2ForCausalLM, hub.Qwen2Config, qwen, {"tie_word_embeddings": True}),
    "Qwen 3": Family(hub.Qwen3ForCausalLM, hub.Qwen3Config, qwen, {}),
    "Gemma": Family(hub.GemmaForCausalLM, hub.GemmaConfig, gemma, {"num_key_value_heads": 1}),
    "Gemma 2": Family(hub.Gemma2ForCausalLM, hub.Gemma2Config, gemma, GEMMA),
    "Gemma 3": Family(hub.Gemma3ForCausalLM, hub.Gemma3TextConfig, gemma, {**GEMMA, "num_hidden_layers": 7}),
}
"""By the name in the table. Windows of the Gemmas are shorter than what they are judged on, and of Gemma 3's layers the sixth sees all."""
