"""One codebook: a vector becomes the index of its nearest entry. The entries are found by k-means.

    min over entries e and indices k of  sum_n sum_d weight_nd (x_nd - e_(k_n)d)^2

Seeds are drawn with probability in proportion to their squared distance from the seeds before (k-means++: Arthur and Vassilvitskii 2007);
then indices and entries are chosen in turn (Lloyd 1982), which never raises the sum. An entry that nothing is nearest to moves to a vector
that lies far from its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.codebooks.quantizer import Quantizer

CHUNK = 1 << 20
"""Distances that are in memory at once."""

VECTORS_AN_ENTRY = 256
"""Vectors an entry that k-means looks at; of more, that many are drawn."""


@dataclass(frozen=True, eq=False)
class Codebook(Quantizer):
    """entries: [k, d] float."""

    entries: Float[Tensor, "k d"]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.entries.shape[0],)

    def encode(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, "n one"]:
        return nearest(vectors, self.entries)[:, None]

    def decode(self, indices: Int[Tensor, "n one"]) -> Float[Tensor, "n d"]:
        return self.entries[indices[:, 0]]


def fit_codebook(
    vectors: Float[Tensor, "n d"],
    entries: int,
    generator: torch.Generator,
    weights: Float[Tensor, "n #d"] | None = None,
    iterations: int = 25,
) -> Codebook:
    """k-means. weights: of each vector, or of each of its values. generator: on the processor, wherever the vectors are."""
    most = VECTORS_AN_ENTRY * entries
    if vectors.shape[0] > most:
        drawn = torch.randperm(vectors.shape[0], generator=generator)[:most].to(vectors.device)
        vectors, weights = vectors[drawn], None if weights is None else weights[drawn]
    found = seeds(vectors, entries, generator, weights)
    indices = nearest(vectors, found, weights)
    for _ in range(iterations):
        found = means(vectors, indices, found, weights)
        before, indices = indices, nearest(vectors, found, weights)
        if torch.equal(before, indices):
            break
    return Codebook(found)


def nearest(vectors: Float[Tensor, "n d"], entries: Float[Tensor, "k d"], weights: Float[Tensor, "n #d"] | None = None) -> Int[Tensor, "n"]:
    """The index of the nearest entry to each vector, in its weighted distance."""
    half = entries.square() / 2
    rows = max(1, CHUNK // entries.shape[0])
    if weights is None or weights.shape[1] == 1:
        return torch.cat([torch.addmm(half.sum(1), part, entries.T, alpha=-1).argmin(1) for part in vectors.split(rows)])
    both = torch.cat([half, -entries], 1).T
    parts = zip(vectors.split(rows), weights.split(rows), strict=True)
    return torch.cat([(torch.cat([weight, part * weight], 1) @ both).argmin(1) for part, weight in parts])


def seeds(
    vectors: Float[Tensor, "n d"], entries: int, generator: torch.Generator, weights: Float[Tensor, "n #d"] | None = None
) -> Float[Tensor, "k d"]:
    """Vectors to start from, each drawn with probability in proportion to its squared distance from those before; none is drawn twice
    while there are others."""
    drawn = torch.rand(entries, generator=generator, dtype=torch.float64).to(vectors.device)
    mass = torch.ones_like(vectors[:, 0]) if weights is None else weights.mean(1)
    found = torch.empty(entries, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    distance = torch.full_like(mass, torch.inf)
    for place in range(entries):
        far = mass if place == 0 else distance
        total = far.to(torch.float64).cumsum(0)
        # Where the draw falls on the bound, or all mass is gone, the last vector would follow the end.
        index = torch.searchsorted(total, drawn[place] * total[-1], right=True).clamp_max(len(total) - 1)
        found[place] = vectors[index]
        square = (vectors - found[place]).square()
        distance = torch.minimum(distance, square.sum(1) if weights is None else (square * weights).sum(1))
    return found


def means(
    vectors: Float[Tensor, "n d"],
    indices: Int[Tensor, "n"],
    entries: Float[Tensor, "k d"],
    weights: Float[Tensor, "n #d"] | None = None,
) -> Float[Tensor, "k d"]:
    """The entry with the least weighted squared distance to the vectors that have its index: their mean. Entries that no vector has move to
    the vectors that lie farthest from theirs."""
    weights = torch.ones_like(vectors[:, :1]) if weights is None else weights
    mass = sums(weights.expand_as(vectors), indices, len(entries))
    total = sums(vectors * weights, indices, len(entries))
    found = torch.where(mass > 0, total / mass, entries)
    empty = (torch.bincount(indices, minlength=len(entries)) == 0).nonzero()[:, 0]
    if len(empty):
        distance = ((vectors - found[indices]).square() * weights).sum(1)
        farthest = distance.topk(min(len(empty), len(distance))).indices
        found[empty[: len(farthest)]] = vectors[farthest]
    return found


def sums(values: Float[Tensor, "n d"], indices: Int[Tensor, "n"], entries: int) -> Float[Tensor, "k d"]:
    """The sum of the values with each index, added in an order that is always the same."""
    found = torch.zeros(entries, values.shape[1], dtype=values.dtype, device=values.device)
    if values.is_cuda:  # which adds by index in any order, but puts in a sorted one
        return found.index_put_((indices,), values, accumulate=True)
    return found.index_add_(0, indices, values)
