"""Every format that a result can be written in besides the one it is made in."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.method import nearest
from thrifty.export.container import METHOD
from thrifty.export.side import library_of

FORMATS = {
    "dense": "safetensors without codes, for runtimes that read no packed weights",
    "gguf": "one file for llama.cpp",
    "thrifty": "our own container",
    "aqlm": "additive codebooks for the package aqlm and vLLM",
}


def rounds_inputs(folder: Path) -> bool:
    """Whether readers of a result round what its matrices read."""
    quantized = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    own = quantized.get("inputs", []) if quantized.get("quant_method") == METHOD else []
    groups = own if isinstance(own, list) else []
    return any(group.get("input_activations") for group in quantized.get("config_groups", {}).values()) or any(
        isinstance(group, dict) and group.get("bits") for group in groups
    )


def check_export(folder: Path, to: str) -> None:
    """Raise InputError for a format that there is not, and for a folder that it does not take."""
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}{nearest(to, FORMATS)}; there are: {', '.join(FORMATS)}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    if to != "dense" and library_of(json.loads((folder / "config.json").read_text())) != "transformers":
        raise InputError(f"{to} holds models of transformers, and {folder} is one of diffusers; it can be exported to dense only")


def export_result(folder: Path, to: str, out: Path | None) -> dict[str, Any]:
    """Write a result folder in another format and read it back; returns {folder, format, out, bytes, tensors}.

    out: `<folder>-dense` or `<folder>.gguf` by default. Raises InputError for a format or an architecture that cannot be written, and for
    an `out` that exists; RunError when what was written reads back otherwise.
    """
    check_export(folder, to)
    folder = folder.absolute()
    out = out or folder.with_name(f"{folder.name}.gguf" if to == "gguf" else f"{folder.name}-{to}")
    if out.exists():
        raise InputError(f"{out} exists; choose another --out")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out.absolute().parent} is not a folder; choose another --out")
    if rounds_inputs(folder):
        events.warn(f"in {out.name} inputs are no longer rounded, so what the certificate says of quality is said of {folder.name} alone")
    write = importlib.import_module(f"thrifty.export.{to}").write
    return {"folder": str(folder), "format": to, "out": str(out), **write(folder, out)}
