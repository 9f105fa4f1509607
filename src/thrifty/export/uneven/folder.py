"""What a folder holds besides weights where layers differ in width: the config, and the file that tells transformers how to build it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from thrifty.base.store import write_bytes, write_json
from thrifty.export.uneven.outline import KEY

MODELING = Path(__file__).with_name("modeling_uneven.py")
_TOKENIZER = "tokenizer_config.json"


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
