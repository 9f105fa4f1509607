"""Groups of channels, each with a quantizer of its own: a vector is cut into runs of values that are quantized apart.

With one codebook a group this is product quantization (Jegou, Douze and Schmid 2011), with a residual quantizer a group it is GRVQ. The
squared error of a vector is the sum of those of its groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.core.codebooks.additive import fit_residual
from thrifty.core.codebooks.kmeans import fit_codebook
from thrifty.core.codebooks.quantizer import Quantizer


@dataclass(frozen=True, eq=False)
class Grouped(Quantizer):
    """parts: a quantizer for each group, all of them for as many values."""

    parts: tuple[Quantizer, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for part in self.parts for size in part.sizes)

    def encode(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, "n q"]:
        return torch.cat([part.encode(run) for part, run in zip(self.parts, cut(vectors, len(self.parts)), strict=True)], 1)

    def decode(self, indices: Int[Tensor, "n q"]) -> Float[Tensor, "n d"]:
        runs = indices.split([len(part.sizes) for part in self.parts], 1)
        return torch.cat([part.decode(run) for part, run in zip(self.parts, runs, strict=True)], 1)


def fit_product(vectors: Float[Tensor, "n d"], groups: int, entries: int, generator: torch.Generator) -> Grouped:
    """One codebook a group, each by k-means."""
    fit = partial(fit_codebook, entries=entries, generator=generator)
    return Grouped(tuple(fit(run) for run in cut(vectors, groups)))


def fit_grouped_residual(vectors: Float[Tensor, "n d"], groups: int, codebooks: int, entries: int, generator: torch.Generator) -> Grouped:
    """A residual quantizer a group."""
    fit = partial(fit_residual, codebooks=codebooks, entries=entries, generator=generator)
    return Grouped(tuple(fit(run) for run in cut(vectors, groups)))


def cut(vectors: Float[Tensor, "n d"], groups: int) -> tuple[Float[Tensor, "n part"], ...]:
    """The vectors' groups of channels. Raises InputError when they are not equally wide."""
    if vectors.shape[1] % groups:
        raise InputError(f"{groups} groups do not divide vectors of {vectors.shape[1]} values; take a number of groups that does")
    return vectors.split(vectors.shape[1] // groups, 1)
