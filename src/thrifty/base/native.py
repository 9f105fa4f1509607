"""C of this package, compiled by the machine's own compiler when it is first wanted, and kept.

Whoever asks has another way: where there is no compiler, it fails or takes long, or THRIFTY_NATIVE is 0, there is no library, and a note
says so once. What was built lies in the user's cache (XDG_CACHE_HOME, else ~/.cache) under the digest of the source, the compiler and the
processor, so that a home that several machines share holds one for each kind.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

from thrifty.base.errors import RunError
from thrifty.base.events import note
from thrifty.base.store import content_key, file_digest, write_atomic

FLAGS = ("-O3", "-std=gnu11", "-w", "-shared", "-fPIC")
FASTEST = ("-march=native",)
"""What not every compiler takes."""

SECONDS = 30
"""A compiler that takes longer is stopped: it takes one on a machine that has nothing else to do."""

OFF = "THRIFTY_NATIVE"


Part = TypeVar("Part")
Found = TypeVar("Found")

_LOADED: dict[str, ctypes.CDLL] = {}


def loaded() -> list[str]:
    """The names of the C files whose libraries this process has loaded."""
    return sorted(_LOADED)


def in_threads(call: Callable[[Part], Found], parts: Sequence[Part]) -> list[Found]:
    """`call` of each part, each in a thread of its own: while a library computes, it lets go of the interpreter's lock."""
    if len(parts) == 1:
        return [call(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(call, parts))


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The library of a C file; None, said once in a note, where this machine has none. The first call on a machine compiles."""
    found = _library(source)
    if found is not None:
        _LOADED[source.stem] = found
    return found


def _library(source: Path) -> ctypes.CDLL | None:
    if os.environ.get(OFF) == "0":
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return _without(source, "there is no C compiler")
    try:
        place = _cache() / f"{source.stem}-{_key(source, compiler)[:24]}.so"
        if not place.exists():
            write_atomic(place, lambda temporary: _compile(compiler, source, temporary))
        return ctypes.CDLL(str(place))
    except (RunError, RuntimeError):  # a folder that cannot be written, or nobody's home
        pass
    except OSError as error:
        return _without(source, f"what was built cannot be loaded ({error})")
    except subprocess.SubprocessError as error:
        return _without(source, _said(error))
    return _for_now(source, compiler)


def _for_now(source: Path, compiler: str) -> ctypes.CDLL | None:
    """A library for this process alone, where there is no cache."""
    try:
        with tempfile.TemporaryDirectory() as place:
            _compile(compiler, source, Path(place) / "library.so")
            return ctypes.CDLL(str(Path(place) / "library.so"))
    except (OSError, subprocess.SubprocessError) as error:
        return _without(source, _said(error))


def _without(source: Path, reason: str) -> None:
    note(f"{source.stem} is computed by torch alone, which takes longer: {reason}")


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the C compiler took more than {SECONDS} seconds"
    lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
    return f"the C compiler failed ({next((line for line in lines if 'error' in line), lines[0] if lines else 'no reason given')})"


def _compile(compiler: str, source: Path, out: Path) -> None:
    for flags in ((*FLAGS, *FASTEST), FLAGS):
        try:
            words = [compiler, *flags, "-o", str(out), str(source), "-lm"]
            subprocess.run(words, check=True, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
            return
        except subprocess.CalledProcessError:
            if flags is FLAGS:
                raise


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "thrifty" / "native"


def _key(source: Path, compiler: str) -> str:
    known = Path(compiler).resolve()
    texts = [file_digest(one) for one in (source, *sorted(source.parent.glob("*.h")))]
    return content_key([*texts, str(known), known.stat().st_mtime, FLAGS, FASTEST, _processor()])


def _processor() -> list[str]:
    """What code for this processor must not be run without."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [f"flags: {platform.processor()} {platform.node()}"]
    kinds = ("flags", "Features", "model name", "CPU part", "isa")
    return [platform.system(), platform.machine(), *sorted({line for line in lines if line.startswith(kinds)})]
