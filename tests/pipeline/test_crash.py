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
from collections.abc import Iterator
from contextlib import suppress
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
CHAIN = """
calibration: {samples: 8, tokens: 64}
evaluation: {samples: 8, tokens: 64}
steps: [{flap: {ratio: 0.2}}, {distill: {steps: 6, batch: 2}}, {gptq: {group_size: 8}}]
"""
SERVER = multiprocessing.get_context("forkserver")
"""Where processes come from that have imported everything: what is killed is the run, not Python as it starts."""
SERVER.set_forkserver_preload(["thrifty.cli.main", "thrifty.api"])


def command(recipe: str, out: Path, printed: Path) -> None:
    """The command as a process of its own, with what it prints in two files."""
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(printed.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.exit(main(["compress", "--recipe", recipe, "--json", "--out", str(out)]))


def start(out: Path, printed: Path, recipe: str = RECIPE) -> BaseProcess:
    process = SERVER.Process(target=command, args=(recipe, out, printed))
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
    return whole(tmp_path_factory.mktemp("undisturbed") / "result")


def whole(out: Path, recipe: str = RECIPE) -> tuple[Path, float]:
    """(a run that nothing disturbs, its seconds)"""
    first = SERVER.Process(target=int)  # waits for the server's imports
    first.start()
    first.join()
    began = time.monotonic()
    finish(start(out, out, recipe), out)
    return out, time.monotonic() - began


def blocks_of(out: Path) -> set[tuple[str, int]]:
    """The finished blocks of a run that is under way, and when each was written."""
    found = set()
    with suppress(FileNotFoundError):  # what is watched may remove them all, being done
        for path in (out / ".run").rglob("blocks/*.json"):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def killed(out: Path, printed: Path, reference: Path, seconds: float, kills: int, recipe: str = RECIPE) -> Iterator[bool]:
    """Kills a run at random moments, every other time soon after a block was finished, and begins it again; one that comes to its end is
    compared, and the next begins anew.

    Yields after each kill, and whether a run had come to its end since the one before.
    """
    moments, anew = random.Random(0), False
    while kills:
        process = start(out, printed, recipe)
        if kills % 2:
            process.join(timeout=moments.uniform(0.1, 0.7) * seconds)
        else:  # blocks are a small part of the time
            before = len(blocks_of(out))
            while process.is_alive() and len(blocks_of(out)) == before:
                time.sleep(0.002)
            process.join(timeout=moments.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode == 0:
            assert fingerprint(out) == fingerprint(reference)
            shutil.rmtree(out)
            anew = True
            continue
        assert process.exitcode == -signal.SIGKILL
        kills -= 1
        yield anew
        anew = False


def test_killed_at_ten_moments(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    reference, seconds = undisturbed
    out = tmp_path / "result"
    counts, finished = [], set()
    for anew in killed(out, tmp_path / "printed", reference, seconds, KILLS):
        blocks = blocks_of(out)
        done = (out / "certificate.json").exists()  # the working files may be gone, or some of them
        assert anew or finished <= blocks or done, "a finished block was solved again"
        counts.append(len(blocks))
        finished = blocks
    assert any(0 < count < BLOCKS for count in counts), "no run was killed between its blocks"
    found = finish(start(out, tmp_path / "printed"), tmp_path / "printed")
    assert found["out"] == str(out)
    # the seconds of the attempts before count, too
    assert found["seconds"] >= sum(found["phases"].get(name, 0) for name in ("forward", "gram", "transform", "solve", "evaluate"))
    assert fingerprint(out) == fingerprint(reference)
    assert not (out / ".run").exists()


def test_a_chain_is_killed_at_random_moments(tmp_path: Path) -> None:
    reference, seconds = whole(tmp_path / "reference", CHAIN)
    out, printed = tmp_path / "result", tmp_path / "printed"
    for _ in killed(out, printed, reference, seconds, 4, CHAIN):
        pass
    finish(start(out, printed, CHAIN), printed)
    assert fingerprint(out) == fingerprint(reference)
    assert not (out / ".run").exists()
