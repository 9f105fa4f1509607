"""A result in the runtime it is meant for: the plain library loads what was written and must give the outputs that are expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
    return verify_outputs(folder, source.config, inputs, expected, source.library, trusted=source.remote_code is not None)


def verify_outputs(
    place: Path,
    config: Any,
    inputs: Mapping[str, Tensor],
    expected: Float[Tensor, "*shape"],
    library: str = "transformers",
    *,
    trusted: bool = False,
) -> float:
    """Load a folder, or a GGUF file, with the plain library in float32; returns by how much its outputs differ from the expected ones.

    config: of the model; trusted: whether its folder's own code may run. See `verify_runtime` for the difference and what is raised.
    """
    model = _load(place, config, library, trusted)
    try:
        with torch.inference_mode():
            found = main_output(model(**inputs)).to(torch.float32)
    except Exception as error:
        raise RunError(f"{library} cannot run {place} ({type(error).__name__}: {' '.join(str(error).split())})") from error
    difference = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    if not difference <= TOLERANCE:
        raise RunError(f"{library} gives outputs of {place} that differ by {difference:.2g} (relative) from those that were expected")
    return difference


def _load(place: Path, config: Any, library: str, trusted: bool) -> nn.Module:
    found = model_class(config, str(place) if trusted else None)
    where: dict[str, Any] = {"pretrained_model_name_or_path": place}
    if place.is_file():
        where = {"pretrained_model_name_or_path": place.parent, "gguf_file": place.name}
    try:
        model = found.from_pretrained(**where, dtype=torch.float32).eval()
        if hasattr(model, "ct_decompress_hook"):
            # The package compressed-tensors would decode small floats to bfloat16, which holds them, when the model is first called.
            model.hf_quantizer.compressor.decompress_model(model)
        # Packed experts are decoded in the type of their scales whatever is asked for.
        return model.to(torch.float32) if library == "transformers" else model
    except Exception as error:  # whatever it is, the result cannot be read by those it was made for
        raise RunError(f"{library} cannot load {place} ({type(error).__name__}: {' '.join(str(error).split())})") from error
