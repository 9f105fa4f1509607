"""A network whose layers differ in width as a model folder: weights, config, and the file that tells transformers how to build it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from thrifty.base.store import write_bytes, write_json, writing
from thrifty.export.shards import Made, Piece, check_shards, write_shards
from thrifty.export.side import copy_side_files
from thrifty.export.uneven.outline import KEY

MODELING = Path(__file__).with_name("modeling_uneven.py")
_TOKENIZER = "tokenizer_config.json"


def write_uneven(out: Path, config: Mapping[str, Any], tensors: Sequence[Piece | Made], folder: Path, side_files: Sequence[Path]) -> None:
    """Write the folder `out`, whole or not at all; every tensor is read back.

    config: see `uneven_config`. side_files: what is copied from `folder`, the original's. Raises RunError when the disk is full or a tensor
    reads back otherwise than it was written.
    """
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with writing(out):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            check_shards(staging, write_shards(staging, tensors))
            copy_side_files(side_files, folder, staging)
            write_beside(staging, config)
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_beside(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json and the modeling file into a folder that holds everything else.

    A tokenizer that transformers chose by the model type keeps its class: it is written down.
    """
    write_json(folder / "config.json", dict(config))
    write_bytes(folder / MODELING.name, MODELING.read_bytes())
    file = folder / _TOKENIZER
    settings = json.loads(file.read_text()) if file.exists() else {}
    chosen = TOKENIZER_MAPPING_NAMES.get(config[KEY]["model_type"])
    if file.exists() and "tokenizer_class" not in settings and chosen is not None:
        write_json(file, {**settings, "tokenizer_class": chosen})
