"""A second language model, which nothing here was tuned on: shakespeare-1m on its own text, both from a folder beside this repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from judge import BUILD, HERE
from safetensors.torch import load_file, save_file

SHARED = HERE.parent.parent / "shared"


def shakespeare(shared: Path = SHARED) -> tuple[Path, dict[str, Path]]:
    """The model, padded by silent neurons from an inner width of 344 to 352 so that groups of 32 divide it, and its text in two parts."""
    home = BUILD / "second"
    folder = home / "shakespeare-1m"
    if not folder.exists():
        shutil.copytree(shared / "models" / "shakespeare-1m", folder)
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            if "mlp" in name:
                padding = (0, 8) if "down_proj" in name else (0, 0, 0, 8)
                tensors[name] = torch.nn.functional.pad(tensor, padding).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 352}))
    text = (shared / "data" / "tiny-shakespeare" / "input.txt").read_text()
    parts = {"calibration": text[: int(0.9 * len(text))], "evaluation": text[int(0.9 * len(text)) :]}
    for purpose, part in parts.items():
        (home / f"{purpose}.txt").write_text(part)
    return folder, {purpose: home / f"{purpose}.txt" for purpose in parts}
