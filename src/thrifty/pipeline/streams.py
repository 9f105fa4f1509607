"""The rows that travel through the model: calibration rows through the compressed blocks, evaluation rows through both models.

Only hidden states at one block boundary exist at a time; they are saved beside the finished blocks, so a killed run goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from thrifty.base.store import write_atomic
from thrifty.models import Shell

NAMES = ("calibration", "before", "after")


@dataclass
class Streams:
    """Hidden states by stream name; `done` holds those of chains that are finished, by chain and stream.

    calibration: through the compressed blocks, in the calibration type. reference: the same rows through the original blocks, where
    something is healed. before, after: the evaluation rows through the original and
    through the compressed blocks, float32.
    """

    now: dict[str, Tensor] = field(default_factory=dict)
    done: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def finish_chain(self, chain: str) -> None:
        """Put the present states away as the output of `chain`."""
        self.done[chain] = self.now
        self.now = {}

    def outputs(self, stream: str, start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
        """Final hidden states of the finished chains for some rows of one stream, float32."""
        return {chain: states[stream][start:stop].to(torch.float32) for chain, states in self.done.items()}

    def only(self, stream: str) -> Streams:
        """The finished chains' states of one stream."""
        return Streams(done={chain: {stream: states[stream]} for chain, states in self.done.items()})

    def save(self, path: Path, write: Callable[[Path, Callable[[Path], None]], None] = write_atomic) -> None:
        """Write all states, by a function of `base.store`."""
        tensors = {f"now.{name}": tensor.contiguous() for name, tensor in self.now.items()}
        for chain, states in self.done.items():
            tensors |= {f"done.{chain}.{name}": tensor.contiguous() for name, tensor in states.items()}
        write(path, lambda temporary: save_file(tensors, temporary))

    @classmethod
    def load(cls, path: Path) -> Streams:
        """Read states written by `save`."""
        streams = cls()
        for key, tensor in load_file(path).items():
            place, rest = key.split(".", 1)
            if place == "now":
                streams.now[rest] = tensor
            else:
                chain, name = rest.rsplit(".", 1)
                streams.done.setdefault(chain, {})[name] = tensor
        return streams

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        tensors = [*self.now.values(), *(tensor for states in self.done.values() for tensor in states.values())]
        return sum(tensor.nbytes for tensor in tensors)


def batches(inputs: dict[str, Tensor], size: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """(start, stop, rows) in order."""
    rows = next(iter(inputs.values())).shape[0]
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        yield start, stop, {name: tensor[start:stop] for name, tensor in inputs.items()}


def enter(shell: Shell, inputs: dict[str, Tensor], chain: str, streams: Streams, stream: str, batch: int, dtype: torch.dtype) -> Tensor:
    """Hidden states of one stream that reach the first block of `chain`."""
    parts = [
        shell.enter(rows, chain, streams.outputs(stream, start, stop)).to("cpu", dtype) for start, stop, rows in batches(inputs, batch)
    ]
    return torch.cat(parts)
