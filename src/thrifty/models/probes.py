"""Does a map commute with what lies between two matrices?

Tried on a random block: apply the map to the writer, undo it in the readers, and see whether the block's output stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.models.blocks import get_weight, set_weight
from thrifty.models.trace import Specimen

_TOLERANCE = 1e-3


@dataclass
class Probe:
    """Probes of one specimen; `plain` is its output as it is."""

    subject: Specimen

    def __post_init__(self) -> None:
        self.plain = self.subject.run()
        self.generator = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def norm_scales(self, norm: str, readers: list[str], plus_one: bool) -> bool:
        """Whether dividing a norm's gain and multiplying its readers' columns leaves the output as it is."""
        module = self.subject.module.get_submodule(norm)
        scale = self._scale(module.weight.shape[0])
        with self.subject.changed(norm, *readers):
            one = 1.0 if plus_one else 0.0
            module.weight.copy_((module.weight + one) / scale - one)
            if getattr(module, "bias", None) is not None:
                module.bias.div_(scale)
            self._multiply_columns(readers, torch.diag(scale))
            return self._same()

    @torch.no_grad()
    def linear_maps(self, writer: str, reader: str, change: Tensor, undo: Tensor) -> bool:
        """Whether `change` [out, out] on the rows of a linear (and its bias) is undone by `undo` [in, in] on the reader's columns."""
        module = self.subject.module.get_submodule(writer)
        with self.subject.changed(writer, reader):
            set_weight(module, change @ get_weight(module))
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(change @ module.bias)
            self._multiply_columns([reader], undo)
            return self._same()

    def scales(self, writer: str, reader: str, width: int) -> bool:
        """Whether a positive scale for each channel can be moved from a linear to the one that reads it, channel for channel."""
        scale = self._scale(width)
        return self.linear_maps(writer, reader, torch.diag(1 / scale), torch.diag(scale))

    def permutes(self, writer: str, reader: str, width: int) -> bool:
        """Whether the channels between two linears may be reordered."""
        order = torch.randperm(width, generator=self.generator)
        shuffle = torch.eye(width)[order]
        return self.linear_maps(writer, reader, shuffle, shuffle.T)

    def mixes(self, writer: str, reader: str, groups: int, repeat: int, size: int) -> bool:
        """Whether any invertible map within each head can be moved from the values to the output projection."""
        maps = [torch.eye(size) + 0.3 * torch.randn(size, size, generator=self.generator) / size**0.5 for _ in range(groups)]
        undo = [torch.linalg.inv(item) for item in maps for _ in range(repeat)]
        return self.linear_maps(writer, reader, torch.block_diag(*maps), torch.block_diag(*undo))

    def _scale(self, width: int) -> Tensor:
        return torch.exp(0.7 * torch.randn(width, generator=self.generator))

    def _multiply_columns(self, readers: list[str], by: Tensor) -> None:
        for path in readers:
            module = self.subject.module.get_submodule(path)
            set_weight(module, get_weight(module) @ by)

    def _same(self) -> bool:
        out = self.subject.run()
        return bool(((out - self.plain).norm() / self.plain.norm()) < _TOLERANCE)
