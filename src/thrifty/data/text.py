"""Texts by name: a file of plain text, a file of JSON lines, a data set of the Hugging Face hub, or the text inside the package.

Each name becomes a list of documents. Of a very long source only the first `LIMIT` characters are read, and a note says so.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.store import as_path
from thrifty.data.embedded import EMBEDDED, END_OF_FILE, Purpose, embedded_text

LIMIT = 16_000_000
_ALIASES = {"wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1")}
_SPLITS = {"calibration": ("train",), "evaluation": ("test", "validation", "train")}
# owner/name or name, and after a colon the configuration of the data set
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")


def read_documents(name: str, purpose: Purpose, tokenizer: Any) -> list[str]:
    """The documents of one text, none of them empty.

    name: `pycode` (the embedded text), a file (`.jsonl`: a document a line, `{"text": ...}` or `{"messages": [{"role", "content"}]}`;
        `.json`: a list of the same; anything else: UTF-8 text), `wikitext2`, or a data set `owner/name` or `owner/name:configuration` of
        the hub.
    tokenizer: renders messages with its chat template.
    Raises InputError, naming file and line, for whatever is missing, empty or not readable.
    """
    path = as_path(name)
    _check_path(name, path)
    if name == EMBEDDED:
        documents: Iterable[str] = embedded_text(purpose).split(END_OF_FILE)
    elif path.is_dir():
        raise InputError(f"{name} is a folder; give a text file (.txt or .jsonl).")
    elif path.is_file():
        documents = _in_file(path, tokenizer)
    elif name in _ALIASES or (_HUB_NAME.fullmatch(name) and path.suffix not in (".txt", ".jsonl", ".json", ".md", ".py", ".csv")):
        documents = _hub(name, purpose, tokenizer)
    else:
        raise InputError(f"there is no file {name}; check the path, or leave it out to use the text inside the package.")
    try:
        kept = [document for document in _limited(documents, name) if document.strip()]
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror or error}); check the file and its permissions.") from None
    if not kept:
        raise InputError(f"{name} is empty; give a file with text in it.")
    return kept


def _check_path(name: str, path: Path) -> None:
    """Raise InputError for a path of which the system does not even say whether there is such a file."""
    try:
        path.stat()
    except ValueError:
        raise InputError(f"{name!r} is no possible name of a file; check the path.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{name} is too long for the name of a file; check the path.") from None
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"{name} cannot be read ({error.strerror}); check the path and its permissions.") from None


def _in_file(path: Path, tokenizer: Any) -> Iterator[str]:
    if path.suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path, tokenizer)
        return
    text = _plain(path)
    records = _records(text) if path.suffix == ".json" else None
    if records is None:
        yield text
    else:
        yield from (_document(record, f"{path}, entry {number}", tokenizer) for number, record in enumerate(records, start=1))


def _records(text: str) -> list[Any] | None:
    """The entries of a JSON list of documents; None for JSON of any other kind, which is a text like others."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    first = value[0] if isinstance(value, list) and value else None
    return value if isinstance(first, dict) and first.keys() & {"text", "messages"} else None


def _plain(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(4 * LIMIT)  # a character has at most four bytes
        cut = bool(file.read(1))
    if cut:  # so as not to end inside a character
        data = data[: data.rfind(b"\n") + 1] or data
    return _decode(data, path)


def _decode(data: bytes, path: Path, line: int = 1) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(f"{path}, line {line}: not valid UTF-8 (byte 0x{data[error.start]:02x}); convert the file to UTF-8.") from error


def _json_lines(path: Path, tokenizer: Any) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, number)
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not valid JSON ({error.msg}, column {error.colno}); write one JSON object a line.") from error
            yield _document(record, where, tokenizer)


def _document(record: Any, where: str, tokenizer: Any) -> str:
    """The text of one record: its `text`, or its `messages` as the chat template writes them."""
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return record["text"]
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InputError(f'{where}: neither {{"text": "..."}} nor {{"messages": [...]}}; give one of them.')
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f'{where}: a message lacks "role" or "content"; give both in every message.')
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f'{where}: the model\'s tokenizer has no chat template for "messages"; give {{"text": "..."}} instead.')
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"{where}: the chat template refuses these messages ({error}); check their roles and their order.") from error


def _limited(documents: Iterable[str], name: str) -> Iterator[str]:
    left = LIMIT
    for document in documents:
        if left <= 0 or len(document) > left:
            events.note(f"only the first {LIMIT:,} characters of {name} are used")
            yield document[:left]
            return
        yield document
        left -= len(document)


def _hub(name: str, purpose: Purpose, tokenizer: Any) -> Iterator[str]:
    """Rows of a data set, streamed: the split `train` to calibrate on, `test` (or `validation`, or `train`) to judge on."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"there is no file {name}; if a data set of the hub is meant, run: pip install thrifty[datasets]") from error
    path, _, configuration = name.partition(":")
    path, configuration = _ALIASES.get(name, (path, configuration or None))
    try:
        available = datasets.get_dataset_split_names(path, configuration)
        split = next((split for split in _SPLITS[purpose] if split in available), available[0])
        rows = datasets.load_dataset(path, configuration, split=split, streaming=True)
        if name in _ALIASES:  # lines of one text, which the published figures join with an empty line
            yield "\n\n".join(_limited((row["text"] for row in rows), name))
            return
        for number, row in enumerate(rows):
            yield _document(row, f"{name} ({split}), row {number}", tokenizer)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"the data set {name} cannot be read: {reason}; check its name and the network, or give a file.") from error
