"""The result in the runtime it is meant for: the plain library loads the folder and must give the logits of the walk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from thrifty.base.errors import RunError
from thrifty.data import Rows
from thrifty.models import Source
from thrifty.models.shell import main_output
from thrifty.models.skeleton import model_class
from thrifty.pipeline.streams import Streams

TOLERANCE = 1e-4
ROWS = 2


def verify_runtime(folder: Path, source: Source, rows: Rows, streams: Streams) -> float:
    """Load `folder` with the plain library in float32 and compare what it makes of the first rows; returns the largest difference.

    The difference is that of logits, over the largest logit where that is above 1. Raises RunError when it is above 1e-4.
    """
    inputs = {name: tensor[:ROWS] for name, tensor in rows.inputs.items()}
    expected = source.shell(torch.float32).finish(inputs, streams.outputs("after", 0, ROWS))
    model = _load(folder, source)
    try:
        with torch.inference_mode():
            found = main_output(model(**inputs)).to(torch.float32)
    except Exception as error:
        raise RunError(f"{source.library} cannot run {folder} ({type(error).__name__}: {' '.join(str(error).split())})") from error
    difference = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    if not difference <= TOLERANCE:
        raise RunError(
            f"{source.library} gives outputs that differ by {difference:.2g} (relative) from those of the walk; the result is in {folder}"
        )
    return difference


def _load(folder: Path, source: Source) -> nn.Module:
    found = model_class(source.config, None if source.remote_code is None else str(folder))
    try:
        model = found.from_pretrained(folder, dtype=torch.float32).eval()
        # Packed experts are decoded in the type of their scales whatever is asked for.
        return model.to(torch.float32) if source.library == "transformers" else model
    except Exception as error:  # whatever it is, the result cannot be read by those it was made for
        raise RunError(f"{source.library} cannot load {folder} ({type(error).__name__}: {' '.join(str(error).split())})") from error
