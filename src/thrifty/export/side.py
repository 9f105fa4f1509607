"""Everything in a model folder that is not weights: tokenizer, templates, processors, license, config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thrifty.base.anatomy import STEMS, Library
from thrifty.base.store import write_bytes, write_json

REPLACED = ("README.md",)
"""Files that the result writes anew."""


def library_of(config: Mapping[str, Any]) -> Library:
    """Whose model a config.json describes."""
    return "diffusers" if "_class_name" in config else "transformers"


def stem_of(config: Mapping[str, Any]) -> str:
    """What the files of its weights are called."""
    return STEMS[library_of(config)]


def copy_side_files(files: Sequence[Path], folder: Path, out: Path) -> None:
    """Copy files of a folder, or of its sub-folders, to the same places in another; a model card is left behind, for the result gets one
    of its own."""
    for file in files:
        if file.name not in REPLACED:
            write_bytes(out / file.relative_to(folder), file.read_bytes())


def write_config(out: Path, config: Mapping[str, Any], quantization_config: Mapping[str, Any] | None) -> None:
    """`config.json`: the original's, with how the weights are quantized."""
    added = {} if quantization_config is None else {"quantization_config": dict(quantization_config)}
    write_json(out / "config.json", {**config, **added})
