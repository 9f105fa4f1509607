"""Two runs never write into one folder at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import thrifty
from tests.tiny import inputs, tiny
from thrifty.base.errors import InputError
from thrifty.base.lock import alone

HOLD = """
import pathlib, sys, time
from thrifty.base.lock import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = {"model": tiny("llama", tmp_path / "model"), "recipe": {"steps": [{"rtn": {}}]}, "calibration": inputs("llama", 2, 16)}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"another run is at work in .*out; wait for it, or choose another --out"):
            thrifty.compress(**words, out=out, speed=False)
        assert not out.exists()
        first.send_signal(signal.SIGKILL)
    assert thrifty.compress(**words, out=out, speed=False)["out"] == str(out)


def test_a_folder_is_free_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), alone(tmp_path):
        with pytest.raises(InputError, match="another run"), alone(tmp_path / "." / "x" / ".."):
            pass
        raise RuntimeError
    entered = []
    with alone(tmp_path), alone(tmp_path / "other"):
        entered.append(tmp_path)
    assert entered
