"""A run that is killed anywhere goes on where it was, and ends with the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from thrifty.cli.main import main

KILLS = 10
BLOCKS = 4
RECIPE = """
calibration: {samples: 16, tokens: 128}
evaluation: {samples: 16, tokens: 128}
steps: [{awq: {}}, {gptq: {}}]
"""
COMMAND = ["compress", "--recipe", RECIPE, "--json"]
SERVER = multiprocessing.get_context("forkserver")
"""Where processes come from that have imported everything: what is killed is the run, not Python as it starts."""
SERVER.set_forkserver_preload(["thrifty.cli.main", "thrifty.api"])


def command(out: Path, printed: Path) -> None:
    """The command as a process of its own, with what it prints in two files."""
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(printed.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.exit(main([*COMMAND, "--out", str(out)]))


def start(out: Path, printed: Path) -> BaseProcess:
    process = SERVER.Process(target=command, args=(out, printed))
    process.start()
    return process


def finish(process: BaseProcess, printed: Path) -> dict[str, Any]:
    """What a command prints that comes to its end."""
    process.join(timeout=300)
    assert process.exitcode == 0, printed.with_suffix(".err").read_text()
    return json.loads(printed.with_suffix(".out").read_text())


def fingerprint(out: Path) -> dict[str, str]:
    """Digests of everything that other runtimes read; the certificate holds times and is left out."""
    names = [path for path in sorted(out.iterdir()) if path.suffix in (".safetensors", ".json") and path.name != "certificate.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("undisturbed") / "result"
    first = SERVER.Process(target=int)  # waits for the server's imports
    first.start()
    first.join()
    began = time.monotonic()
    finish(start(out, out), out)
    return out, time.monotonic() - began


def test_killed_at_ten_moments(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    reference, seconds = undisturbed
    out = tmp_path / "result"
    moments, kills, halfway = random.Random(0), 0, 0
    finished: set[tuple[str, int]] = set()
    while kills < KILLS:
        process = start(out, tmp_path / "printed")
        process.join(timeout=moments.uniform(0.1, 0.7) * seconds)
        process.kill()
        process.join()
        if process.exitcode == 0:  # it came to its end before; the next one begins anew
            assert fingerprint(out) == fingerprint(reference)
            shutil.rmtree(out)
            finished = set()
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        blocks = {(path.name, path.stat().st_mtime_ns) for path in (out / ".run" / "blocks").glob("*.json")}
        assert finished <= blocks or not (out / ".run").exists(), "a finished block was solved again"
        halfway += 0 < len(blocks) < BLOCKS
        finished = blocks
    assert halfway, "no run was killed between its blocks"
    found = finish(start(out, tmp_path / "printed"), tmp_path / "printed")
    assert found["out"] == str(out)
    # the seconds of the attempts before count, too
    assert found["seconds"] >= sum(found["phases"].get(name, 0) for name in ("forward", "gram", "transform", "solve", "evaluate"))
    assert fingerprint(out) == fingerprint(reference)
    assert not (out / ".run").exists()
