"""Rows for language models: windows of the right length from the right text, masked where they must be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertTokenizer, GPT2Config, LlamaConfig

from thrifty.base.errors import InputError
from thrifty.data import Rows, default_model, embedded_text, load_rows
from thrifty.data.load import mask_tokens
from thrifty.data.tokenizer import Frame, frame, load_tokenizer

MODEL = default_model()
TOKENIZER = load_tokenizer(MODEL)
CONFIG = AutoConfig.from_pretrained(MODEL)


def _rows(purpose: str = "calibration", **settings: Any) -> Rows:
    return load_rows(**{"folder": MODEL, "config": CONFIG, "kind": "causal_lm", "purpose": purpose, **settings})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=40).save_pretrained(folder)
    (folder / "text.txt").write_text(" ".join("abcdefghijklmnopqrstuvwxyz" * 40))
    return folder


def test_defaults() -> None:
    calibration, evaluation = _rows(), _rows("evaluation")
    assert calibration.inputs["input_ids"].shape == (128, 512) and evaluation.inputs["input_ids"].shape == (64, 512)
    assert calibration.targets is None and calibration.tokens == 65536
    assert set(calibration.inputs) == {"input_ids"} and calibration.inputs["input_ids"].dtype == torch.int64
    assert "inside the package" in calibration.source


def test_windows_are_those_of_the_tokenised_text() -> None:
    tokens = load_tokenizer(MODEL)(embedded_text("evaluation"), add_special_tokens=False, verbose=False)["input_ids"]
    rows = _rows("evaluation", samples=5, tokens=100)
    for number, row in zip(rows.ids, rows.inputs["input_ids"], strict=True):
        assert isinstance(number, int)
        assert row.tolist() == tokens[number * 100 : number * 100 + 100]


def test_the_seed_sets_the_rows() -> None:
    assert _rows(samples=4, tokens=64).digest == _rows(samples=4, tokens=64).digest != _rows(samples=4, tokens=64, seed=1).digest
    assert _rows("evaluation", samples=4).digest == _rows("evaluation", samples=4, seed=1).digest


@pytest.mark.parametrize("length", [32, 20, 50])
def test_no_token_is_taken_twice_whatever_the_lengths(length: int, tmp_path: Path) -> None:
    path, other, copy = tmp_path / "text.txt", tmp_path / "other.txt", tmp_path / "copy.txt"
    path.write_text(" ".join(str(number) for number in range(1000, 4000)))
    other.write_text(" ".join(str(number) for number in range(5000, 5200)))
    copy.write_bytes(path.read_bytes())
    calibration = _rows(samples=40, text=[str(path)], tokens=32)
    taken = set().union(*(numbers(row) for row in calibration.inputs["input_ids"]))
    for names in ([path], [other, path], [copy]):
        evaluation = _rows("evaluation", samples=10, text=[str(name) for name in names], tokens=length, exclude=calibration.used)
        assert evaluation.rows == 10
        for row in evaluation.inputs["input_ids"]:
            assert not taken & numbers(row)
    sliding = _rows("evaluation", text=[str(path)], tokens=length, stride=length // 2, exclude=calibration.used)
    assert not any(taken & numbers(row) for row in sliding.inputs["input_ids"])


def numbers(row: torch.Tensor) -> set[str]:
    """The numbers of a row that are whole: windows may cut those at their ends in two."""
    return {word for word in TOKENIZER.decode(row).split() if len(word) == 4}


def test_sliding_rows_score_each_token_of_the_text_once(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(str(number) for number in range(400)))
    rows = _rows("evaluation", text=[str(path)], tokens=32, stride=10)
    tokens = load_tokenizer(MODEL)(path.read_text(), add_special_tokens=False)["input_ids"]
    scored = [token for row in rows.targets.tolist() for token in row if token != -100]
    assert scored == tokens[1:]
    assert [row.tolist() for row in rows.inputs["input_ids"]] == [tokens[start : start + 32] for start in rows.ids]
    assert _rows("evaluation", text=[str(path)], tokens=32, stride=32).digest == _rows("evaluation", text=[str(path)], tokens=32).digest
    path.write_text("a = 1\n")
    short = _rows("evaluation", text=[str(path)], tokens=32, stride=10)
    assert short.rows == 1 and (short.targets != -100).sum() == short.tokens - 1
    for stride in (0, 33):
        with pytest.raises(InputError, match="from 1 to 32"):
            _rows("evaluation", text=[str(path)], tokens=32, stride=stride)
    with pytest.raises(InputError, match="no such model"):
        _rows("evaluation", kind="masked_lm", stride=10)


def test_several_texts_are_joined_by_the_end_token(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{name} = 1\n")
    rows = _rows("evaluation", text=[str(tmp_path / "a"), str(tmp_path / "b")], samples=1, tokens=10)
    assert load_tokenizer(MODEL).decode(rows.inputs["input_ids"][0]) == "<|endoftext|>a = 1\n<|endoftext|>b = 1\n"


def test_rows_are_no_longer_than_the_model_was_trained_for() -> None:
    short = LlamaConfig(vocab_size=2048, max_position_embeddings=48)
    assert _rows(config=short, samples=2).inputs["input_ids"].shape == (2, 48)
    assert _rows(config=GPT2Config(vocab_size=2048, n_positions=40), samples=2).inputs["input_ids"].shape == (2, 40)
    with pytest.raises(InputError, match=r"rows of 49 tokens .* at most 48"):
        _rows(config=short, samples=2, tokens=49)


def test_too_short_a_text_says_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("x = 1")
    count = len(load_tokenizer(MODEL)("x = 1")["input_ids"])
    with pytest.raises(InputError, match=rf"line\.txt: .* it has {count} tokens, and one window needs 512"):
        _rows(text=[str(path)])


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(InputError, match=r"gives token \d+ .* vocabulary has 100 entries"):
        _rows(config=LlamaConfig(vocab_size=100), samples=2, tokens=16)


def test_no_tokenizer_and_a_broken_one(tmp_path: Path) -> None:
    shutil.copy(MODEL / "config.json", tmp_path)
    with pytest.raises(InputError, match="has no tokenizer"):
        _rows(folder=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        _rows(folder=tmp_path)


def test_special_tokens_frame_each_row(bert: Path) -> None:
    assert frame(load_tokenizer(bert)) == Frame((2,), (3,))
    assert frame(load_tokenizer(MODEL)) == Frame()
    settings: dict[str, Any] = {"folder": bert, "config": BertConfig(vocab_size=31), "text": [str(bert / "text.txt")], "samples": 3}
    ids = _rows(kind="masked_lm", **settings).inputs["input_ids"]
    assert ids.shape == (3, 40)
    assert (ids[:, 0] == 2).all() and (ids[:, -1] == 3).all() and (ids[:, 1:-1] > 4).all()
    assert (_rows(kind="causal_lm", **settings).inputs["input_ids"][:, -1] > 4).all()


def test_masked_rows_hide_what_their_targets_hold(bert: Path) -> None:
    settings: dict[str, Any] = {"folder": bert, "config": BertConfig(vocab_size=31), "kind": "masked_lm", "text": [str(bert / "text.txt")]}
    rows = _rows("evaluation", samples=6, tokens=22, **settings)
    assert rows.targets is not None and rows.targets.shape == (6, 22)
    hidden = rows.inputs["input_ids"] == 4
    assert (hidden == (rows.targets != -100)).all() and (hidden.sum(1) == 3).all()
    whole = torch.where(hidden, rows.targets, rows.inputs["input_ids"])[:, 1:-1]
    assert (whole.diff(dim=1) % 26 == 1).all(), "what is hidden and what is not are together the alphabet, in turn"


def test_masking_is_seeded_and_hits_at_least_one_token() -> None:
    windows = torch.arange(5, 25).view(10, 2)
    masked, targets = mask_tokens(windows, 4, 0)
    assert torch.equal(masked, mask_tokens(windows, 4, 0)[0]) and not torch.equal(masked, mask_tokens(windows, 4, 1)[0])
    assert ((masked == 4).sum(1) == 1).all()
    assert torch.equal(torch.where(masked == 4, targets, masked), windows)


def test_a_masked_model_needs_a_mask_token() -> None:
    with pytest.raises(InputError, match="no mask token"):
        _rows(kind="masked_lm")


def test_other_kinds_and_missing_images() -> None:
    with pytest.raises(InputError, match=r"Rows\.of"):
        _rows(kind="other")
    for kind in ("vision", "dual_encoder", "vision_language"):
        with pytest.raises(InputError, match="--calibration FOLDER"):
            _rows(kind=kind)
