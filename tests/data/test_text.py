"""Texts by name: every form that is read, and a sentence for each that is not."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thrifty.base.errors import InputError
from thrifty.base.events import Event, listening
from thrifty.data import default_model, embedded_text
from thrifty.data import text as module
from thrifty.data.text import read_documents
from thrifty.data.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)


def _read(path: Path | str, tokenizer: Any = None) -> list[str]:
    return read_documents(str(path), "calibration", tokenizer)


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_plain_text_without_its_byte_order_mark(tmp_path: Path) -> None:
    assert _read(_write(tmp_path / "a.txt", b"\xef\xbb\xbfgr\xc3\xbc\xc3\x9f dich\n")) == ["grüß dich\n"]


def test_a_leading_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path / "a.txt", "one")
    assert _read("~/a.txt") == ["one"]
    with pytest.raises(InputError, match=r"there is no file ~/b\.txt"):
        _read("~/b.txt")


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.txt", "one")

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    for name in ("open", "stat"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=r"a\.txt cannot be read \(Permission denied\); check"):
            patch.setattr(Path, name, refuse)
            _read(path)
    with pytest.raises(InputError, match="no possible name of a file"):
        _read("a\0b.txt")


def test_embedded_texts_share_no_file() -> None:
    calibration = read_documents("pycode", "calibration", None)
    evaluation = read_documents("pycode", "evaluation", None)
    assert len(calibration) == 64 and len(evaluation) == 20 and not set(calibration) & set(evaluation)
    assert 400_000 < len(embedded_text("calibration").encode()) < 600_000


def test_json_lines(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(default_model())
    tokenizer.chat_template = TEMPLATE
    chat = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
    path = _write(tmp_path / "a.jsonl", json.dumps({"text": "one"}) + "\n\n" + json.dumps(chat) + "\n")
    assert _read(path, tokenizer) == ["one", "[user]hello[assistant]good day"]
    path = _write(tmp_path / "a.json", json.dumps([{"text": "one"}, chat], indent=1))
    assert _read(path, tokenizer) == ["one", "[user]hello[assistant]good day"]


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", "[]", '[{"a": 1}]', "{broken"])
def test_other_json_is_a_text(text: str, tmp_path: Path) -> None:
    assert _read(_write(tmp_path / "a.json", text)) == [text]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n", "is empty"),
        ("a.jsonl", "\n", "is empty"),
        ("a.txt", b"fine\nnot \xff fine\n", "line 2: not valid UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not valid UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", '{"words": "a"}\n', "line 1: neither"),
        ("a.jsonl", "[1]\n", "line 1: neither"),
        ("a.json", '[{"text": "a"}, {"words": "a"}]', "entry 2: neither"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', 'lacks "role" or "content"'),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', "no chat template"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        _read(_write(tmp_path / name, content), load_tokenizer(default_model()))
    assert str(tmp_path / name) in str(caught.value)


def test_a_chat_that_the_template_refuses(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(default_model())
    tokenizer.chat_template = TEMPLATE
    path = _write(tmp_path / "a.jsonl", '{"messages": [{"role": "tool", "content": "a"}]}\n')
    with pytest.raises(InputError, match=r"line 1: the chat template refuses .*no tools"):
        _read(path, tokenizer)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*gone\.txt; check the path"):
        _read(tmp_path / "gone.txt")
    with pytest.raises(InputError, match="is a folder"):
        _read(tmp_path)


def test_a_long_text_is_cut_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 10)
    heard: list[Event] = []
    with listening(heard.append):
        assert _read(_write(tmp_path / "a.txt", "0123456789abc\n" * 20)) == ["0123456789"]
        assert _read(_write(tmp_path / "a.jsonl", '{"text": "abcdef"}\n' * 5)) == ["abcdef", "abcd"]
    assert [event.kind for event in heard] == ["note", "note"]


def test_data_sets_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("wikitext2", "owner/name"):
        with pytest.raises(InputError, match=r"pip install thrifty\[datasets\]"):
            _read(name)


def test_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, configuration: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((path, configuration, split, streaming))
        return [{"text": "one"}, {"text": ""}, {"text": "two"}]

    def split_names(path: str, configuration: str | None) -> list[str]:
        if path == "owner/gone":
            raise FileNotFoundError("no such data set\nlong story")
        return ["train", "validation"]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, get_dataset_split_names=split_names))
    assert read_documents("wikitext2", "calibration", None) == ["one\n\n\n\ntwo"]
    assert read_documents("owner/name:part", "evaluation", None) == ["one", "two"]
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "train", True), ("owner/name", "part", "validation", True)]
    with pytest.raises(InputError, match="owner/gone cannot be read: no such data set; check"):
        _read("owner/gone")
