"""What linears do to their inputs while rows pass through a block, and statistics of what they then multiply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from torch import Tensor, nn

from thrifty.core.reading import AS_THEY_ARE, Reading
from thrifty.core.statistics import Statistics
from thrifty.models import change_inputs

CHUNK = 8192
"""Tokens that statistics are taken of at once."""


def change_readings(linears: Mapping[str, nn.Module], reading: Callable[[str], Callable[[Tensor], Tensor]]) -> None:
    """Let linears read their inputs as `reading` of their path says whenever one is called, for more may be asked on the way."""
    for path, module in linears.items():
        change_inputs(module, lambda inputs, path=path: found(inputs) if (found := reading(path)) else None)


def gather(inputs: Tensor, reading: Reading = AS_THEY_ARE) -> Statistics:
    """Statistics of one input, turned as it is read, in chunks so that the float32 copy stays small."""
    chunks = inputs.reshape(-1, inputs.shape[-1]).split(CHUNK)
    return reduce(Statistics.merge, (Statistics.of(reading.turned(chunk)) for chunk in chunks))
