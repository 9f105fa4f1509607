"""Sums of codewords: a vector becomes one index into each of several codebooks, and stands for the sum of those entries.

    min over codebooks C and indices k of  sum_n || x_n - sum_m C_m[k_nm] ||^2

A residual quantizer (RVQ) chooses the indices one after the other, each codebook being fitted by k-means to what the ones before it left.
An additive quantizer (Babenko and Lempitsky 2014) keeps the best few partial sums while it chooses (beam search) and then fits all
codebooks together, in closed form: with the indices fixed they are the solution of one least-squares problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.codebooks.kmeans import CHUNK, fit_codebook, nearest, sums
from thrifty.core.codebooks.quantizer import Quantizer

NUMBER_BITS = 16
"""Bits of a number of a codebook, and of a scale."""

RIDGE = 1e-6
"""Share of an entry's vectors that holds it where it was: codebooks can trade a constant, so their system has no unique solution."""


@dataclass(frozen=True, eq=False)
class Additive(Quantizer):
    """codebooks: [m, k, d] float. beam: partial sums that are kept while indices are chosen; 1 is a residual quantizer."""

    codebooks: Float[Tensor, "m k d"]
    beam: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.codebooks.shape[1],) * self.codebooks.shape[0]

    def encode(self, vectors: Float[Tensor, "n d"]) -> Int[Tensor, "n m"]:
        return beam_search(vectors, self.codebooks, self.beam)

    def decode(self, indices: Int[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        return sum_codewords(self.codebooks, indices)


def fit_residual(
    vectors: Float[Tensor, "n d"],
    codebooks: int,
    entries: int,
    generator: torch.Generator,
    weights: Float[Tensor, "n #d"] | None = None,
    iterations: int = 25,
) -> Additive:
    """Each codebook by k-means on what the ones before it left."""
    rest, found = vectors, []
    for _ in range(codebooks):
        found.append(fit_codebook(rest, entries, generator, weights, iterations).entries)
        rest = rest - found[-1][nearest(rest, found[-1], weights)]
    return Additive(torch.stack(found))


def fit_additive(
    vectors: Float[Tensor, "n d"], codebooks: int, entries: int, generator: torch.Generator, beam: int = 8, rounds: int = 10
) -> Additive:
    """From a residual quantizer on: all codebooks by least squares, then all indices by beam search, in turn. The sum of squares never
    rises: where the search finds nothing better, the old indices stay."""
    found = fit_residual(vectors, codebooks, entries, generator).codebooks
    indices = beam_search(vectors, found, beam)
    for _ in range(rounds):
        found = least_squares(vectors, indices, found)
        indices = beam_search(vectors, found, beam, start=indices)
    return Additive(found, beam)


def sum_codewords(codebooks: Float[Tensor, "m k d"], indices: Int[Tensor, "*n m"]) -> Float[Tensor, "*n d"]:
    """The sum of the entries that the indices name, in the order of the codebooks."""
    total = codebooks[0][indices[..., 0].long()]
    for number in range(1, codebooks.shape[0]):
        total = total + codebooks[number][indices[..., number].long()]
    return total


def beam_search(
    vectors: Float[Tensor, "n d"], codebooks: Float[Tensor, "m k d"], beam: int = 1, start: Int[Tensor, "n m"] | None = None
) -> Int[Tensor, "n m"]:
    """Indices with a small  || x - sum_m C_m[k_m] ||^2, codebook by codebook; see `beam_search_in`."""
    pulls = vectors if start is None else vectors - sum_codewords(codebooks, start)
    return beam_search_in(None, pulls, codebooks, beam, start)


def beam_search_in(
    metric: Float[Tensor, "d d"] | None,
    pulls: Float[Tensor, "n d"],
    codebooks: Float[Tensor, "m k d"],
    beam: int = 1,
    start: Int[Tensor, "n m"] | None = None,
) -> Int[Tensor, "n m"]:
    """Indices with a small  r A r^T,  r = x - sum_m C_m[k_m],  A = metric (None: the identity), codebook by codebook.

    pulls: r A at the start, so that no A has to be inverted: x A, or where indices to improve are given as `start`, what is left of it with
    those. beam: how many of the best partial choices go on to the next codebook. With `start` each index is chosen again while the others
    are as they are, and the result is never worse; without it codebooks that are still to come count as 0. Memory: CHUNK distances.
    """
    images = codebooks if metric is None else codebooks @ metric
    half = torch.linalg.vecdot(images, codebooks) / 2
    rows = max(1, CHUNK // (beam * codebooks.shape[1]))
    found = torch.empty(pulls.shape[0], codebooks.shape[0], dtype=torch.int64, device=pulls.device)
    for first in range(0, pulls.shape[0], rows):
        part = slice(first, first + rows)
        found[part] = _search(pulls[part], codebooks, images, half, beam, None if start is None else start[part])
    return found


def _search(pulls: Tensor, codebooks: Tensor, images: Tensor, half: Tensor, beam: int, start: Tensor | None) -> Int[Tensor, "n m"]:
    """One chunk. Of each row's partial choices, pull [n, width, d] is r A and cost [n, width] half of r A r^T, but for what all share."""
    count, dimension = pulls.shape
    stages, entries, _ = codebooks.shape
    pull, cost = pulls[:, None], torch.zeros_like(pulls[:, :1])
    chosen = torch.empty(count, 1, 0, dtype=torch.int64, device=pulls.device)
    for stage in range(stages):
        if start is not None:  # without this codeword
            old = start[:, stage].long()
            cost = cost + (pull @ codebooks[stage][old][..., None])[..., 0] + half[stage][old][:, None]
            pull = pull + images[stage][old][:, None]
        scores = torch.addmm(half[stage], pull.reshape(-1, dimension), codebooks[stage].T, alpha=-1).view(count, -1, entries)
        if scores.shape[1] > 1:
            scores += cost[..., None]
        width = min(beam, scores.shape[1] * entries) if stage + 1 < stages else 1
        least, place = _least(scores.flatten(1), width)
        parent, code = place // entries, place % entries
        cost = least if scores.shape[1] > 1 else cost + least
        chosen = torch.cat([chosen.gather(1, parent[..., None].expand(-1, -1, stage)), code[..., None]], 2)
        if stage + 1 < stages:
            pull = pull.gather(1, parent[..., None].expand(-1, -1, dimension)) - images[stage][code]
    return chosen[:, 0]


def _least(scores: Float[Tensor, "n many"], width: int) -> tuple[Float[Tensor, "n width"], Int[Tensor, "n width"]]:
    """The smallest of each row and where they are, the smallest first."""
    if width == 1:
        return scores.min(1, keepdim=True)
    return scores.topk(width, dim=1, largest=False)


def least_squares(vectors: Float[Tensor, "n d"], indices: Int[Tensor, "n m"], codebooks: Float[Tensor, "m k d"]) -> Float[Tensor, "m k d"]:
    """The codebooks with the least squared error for these indices; entries that none of them names stay as they are."""
    stages, entries, _ = codebooks.shape
    places = indices.long() + entries * torch.arange(stages, device=indices.device)
    total = stages * entries
    pairs = (places[:, :, None] * total + places[:, None, :]).flatten()
    normal = torch.bincount(pairs, minlength=total * total).view(total, total).to(torch.float64)
    rest = (vectors - sum_codewords(codebooks, indices)).to(torch.float64)
    right = torch.cat([sums(rest, column, entries) for column in indices.long().unbind(1)])
    normal.diagonal().mul_(1 + RIDGE).add_((normal.diagonal() == 0).to(torch.float64))
    change = torch.cholesky_solve(right, torch.linalg.cholesky(normal))
    return codebooks + change.view_as(codebooks).to(codebooks.dtype)


def rate_of_sums(codebooks: int, bits: float, group_size: int, shape: tuple[int, int]) -> float:
    """Bits of a weight in an [out, in] matrix of sums of codewords: codes of `bits`, codebooks and a scale a row in numbers of 16 bits."""
    numbers = codebooks * 2**bits * group_size + shape[0]
    return codebooks * bits / group_size + NUMBER_BITS * numbers / (shape[0] * shape[1])
