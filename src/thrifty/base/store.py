"""Files that are whole or absent, and keys made from content.

A write goes to a temporary name in the same folder, is flushed to the disk, and is renamed: a reader never sees half of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from thrifty.base.errors import RunError


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def content_key(value: Any) -> str:
    """A 64-digit key of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def as_path(word: str | Path) -> Path:
    """A path as people write it: a leading ~ is a home; where there is no such home it stays as it is."""
    try:
        return Path(word).expanduser()
    except (RuntimeError, ValueError):  # nobody is called so, or nobody can be
        return Path(word)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder that may be looked at; text that can be no path is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder that may be looked at."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary path, then move the finished file to `path`; on any failure the temporary file is removed.

    Raises RunError with one sentence when the disk is full or the folder cannot be written.
    """

    def flushed(temporary: Path) -> None:
        write(temporary)
        _flush(temporary)

    write_unsettled(path, flushed)
    with writing(path):
        _flush(path.parent)


def settled(*paths: Path) -> list[str]:
    """Flush files that `write_unsettled` wrote to the disk; returns the SHA-256 of each, computed meanwhile, empty where there is none."""
    there = [path for path in paths if path.exists()]
    with ThreadPoolExecutor(1) as aside:
        digests = [aside.submit(file_digest, path) for path in paths]
        for path in (*there, *dict.fromkeys(path.parent for path in there)):
            with writing(path):
                _flush(path)
        return [digest.result() for digest in digests]


def write_unsettled(path: Path, write: Callable[[Path], None]) -> None:
    """`write_atomic` for a file that must not count before it is `settled`: a reader sees it whole, a power cut may not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # what went wrong above is what has to be told
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system refuses inside the `with` block becomes a RunError with one sentence about `path`."""
    try:
        yield
    except OSError as error:
        raise RunError(_say(error.errno, error.strerror or str(error), path)) from error
    except Exception as error:  # safetensors has an error of its own: "I/O error: No space left on device (os error 28)"
        found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
        if found is None:
            raise
        raise RunError(_say(int(found[1]), os.strerror(int(found[1])), path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content) and None)


def write_files(contents: Mapping[Path, bytes], advance: Callable[[float, str], None] = lambda done, name: None) -> None:
    """Write many files, each atomically, with one flush for all: a thousand files take seconds less. They appear in their order.

    advance: told how many are there, and the last one's name. Raises RunError as `write_atomic` does; what has appeared by then stays.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for folder in {path.parent for path in contents}:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            with writing(path):
                temporary[path].write_bytes(content)
        os.sync()
        for done, path in enumerate(contents, 1):
            with writing(path):
                os.replace(temporary[path], path)
            advance(done, path.name)
        for folder in {path.parent for path in contents}:
            _flush(folder)
    finally:
        for left in temporary.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _say(number: int | None, reason: str, path: Path) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {path} could not be written; free some space or choose another --out, then run the same command again."
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"No permission to write {path}; choose an --out folder that you may write to."
    return f"{path} could not be written ({reason}); finished work is kept, run the same command again."
