"""Leave the hidden states only the directions that hold most of their energy, in the whole model: SliceGPT.

    h' = h Q,   Q [D, D'] = the first eigenvectors of  C = sum over norms of the mean of h h^T,   D' = (1 - ratio) D
    what reads a norm: W' = W diag(g) R      what writes: W' = Q^T W      embeddings: E' = E Q      norms: g' = sqrt(D / D')

A norm divides by the length of h, which no rotation changes; so hidden states can be turned until the channels that go hold least, and then
be cut. Where a LayerNorm takes the mean off, one of the channels that stay is for the mean. Every matrix of a block gets smaller by the
ratio, and so do embeddings and head, which can share no matrix then. The published method turns each norm's inputs their own way, which
needs a matrix on every skip connection; here one Q does for all, so that nothing is added and the result is of the same architecture, with
a smaller hidden size. At the same number of parameters that loses less (`bench/structure_methods.py slices`).

Ours, and each can be switched off. `normalised`: h as the norms see it, so that late blocks, whose hidden states are long, do not outweigh
the early ones. `by: outputs`: from there, Q goes on to where all that reads the norms loses least of what it puts out, each norm counting
alike,  min sum of E ||A (x - R Q^T x)||^2 / E ||A x||^2,  A what reads x, by `steps` of conjugate gradients. `refit`: what reads makes up
for what is gone,  R = G Q (Q^T G Q)^-1,  G the products of what this norm puts out. `by: energy, normalised: false, refit: false` is as
published; `by: channels` and `by: random` are what any choice is to be compared with. An architecture whose heads must be as wide as its
hidden size says (GPT-2, OPT) cannot be had narrower, and is refused.
Source: Ashkboos, Croci, do Nascimento, Hoefler and Hensman (2024), arXiv 2401.15024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.slicing import best_read, principal, refit
from thrifty.structure.narrow import Narrower, Products


@dataclass(frozen=True)
class SliceGPT(Narrower):
    """by: what chooses directions: what readers put out (in at most so many steps), the energy, that of single channels, or a draw by seed.
    normalised: whether hidden states count as norms see them. refit: whether what reads them makes up for what is gone; damp: added to what
    that inverts, relative."""

    name: ClassVar[str] = "slice_gpt"
    paper: ClassVar[Paper | None] = Paper(
        "Ashkboos, Croci, do Nascimento, Hoefler, Hensman",
        2024,
        "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
        "2401.15024",
        "one rotation for the whole model, without matrices on its skip connections",
    )

    by: Literal["outputs", "energy", "channels", "random"] = "outputs"
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    normalised: bool = True
    refit: bool = True
    damp: Annotated[float, Field(ge=0, le=1)] = 1e-3
    seed: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def examples(cls) -> tuple[SliceGPT, ...]:
        return (cls(), cls(by="energy", normalised=False, refit=False))

    @property
    def counts_alike(self) -> bool:
        return self.normalised

    @property
    def sees_readers(self) -> bool:
        return self.by == "outputs"

    def operations(self, hidden: int, norms: int) -> float:
        kept = self.width(hidden)
        passes = 1.5 * self.steps * norms if self.sees_readers and kept < hidden else 0.0
        return super().operations(hidden, norms) + passes * (8.0 * hidden**2 * kept + 2.0 * kept**3)

    def directions(self, seen: Products, kept: int) -> Float[Tensor, "width kept"]:
        width = len(seen.gram)
        if self.by == "channels":
            order = seen.gram.diagonal().argsort(descending=True, stable=True)[:kept].sort().values
            return torch.eye(width, dtype=torch.float64)[:, order]
        if self.by == "random":
            drawn = torch.randn(width, kept, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
            return torch.linalg.qr(drawn).Q
        matrix = principal(seen.gram, kept)
        return best_read(matrix, seen.pairs, self.steps) if self.by == "outputs" and kept < width else matrix

    def reading(self, gram: Float[Tensor, "width width"], matrix: Float[Tensor, "width kept"]) -> Float[Tensor, "width kept"] | None:
        return refit(gram, matrix, self.damp) if self.refit else None
