"""What is inside the package: a small model of Python code and the texts to calibrate it on and to judge it on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

Purpose = Literal["calibration", "evaluation"]
EMBEDDED = "pycode"
END_OF_FILE = "<|endoftext|>"


def default_model() -> Path:
    """The folder of the embedded model, an ordinary checkpoint."""
    return _folder() / "model"


def embedded_text(purpose: Purpose) -> str:
    """The embedded text for a purpose: files of Python's standard library, each after an `<|endoftext|>`.

    No file is in both: the evaluation text was kept from the embedded model's training, the calibration text was not.
    """
    return (_folder() / f"{purpose}.txt").read_text(encoding="utf-8")


def _folder() -> Path:
    return Path(str(files("thrifty.data"))) / EMBEDDED
