"""A run that is killed anywhere goes on where it was, and ends with the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 10
COMMAND = ["compress", "--samples", "16", "--tokens", "128", "--json"]


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "thrifty", *COMMAND, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def fingerprint(out: Path) -> dict[str, str]:
    """Digests of everything that other runtimes read; the certificate holds times and is left out."""
    names = [path for path in sorted(out.iterdir()) if path.suffix in (".safetensors", ".json") and path.name != "certificate.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("undisturbed") / "result"
    began = time.monotonic()
    process = start(out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out, time.monotonic() - began


def test_killed_at_ten_moments(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    reference, seconds = undisturbed
    out = tmp_path / "result"
    moments = random.Random(0)
    finished: list[set[str]] = []
    for _ in range(KILLS):
        process = start(out)
        try:
            process.wait(timeout=moments.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        blocks = {path.name: path.stat().st_mtime_ns for path in (out / ".run" / "blocks").glob("*.json")}
        if finished and blocks:
            assert finished[-1] <= set(blocks.items()), "a finished block was solved again"
        finished.append(set(blocks.items()))
    process = start(out)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = json.loads(printed)
    assert found["out"] == str(out)
    # the seconds of the attempts before count, too
    assert found["seconds"] >= sum(found["phases"].get(name, 0) for name in ("forward", "gram", "transform", "solve", "evaluate"))
    assert fingerprint(out) == fingerprint(reference)
    assert not (out / ".run").exists()
