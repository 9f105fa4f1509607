"""What training a quantizer inside a network takes: a gradient past the choice, codebooks that follow their vectors, and no dead codes.

    straight through:  z + stop(z_q - z)
    moving averages:   n_k <- g n_k + (1 - g) count_k,   m_k <- g m_k + (1 - g) sum of the vectors with index k,
                       e_k = m_k / n'_k,   n'_k = (n_k + eps) / (sum n + K eps) * sum n
    revival:           an entry with n_k below a threshold moves to a vector of the batch

Source: van den Oord, Vinyals and Kavukcuoglu (2017), arXiv 1711.00937.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.codebooks.kmeans import sums


def straight_through(vectors: Float[Tensor, "*n d"], quantized: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """The values of `quantized` with the gradient of `vectors`; none flows into a codebook."""
    return vectors + (quantized - vectors).detach()


@dataclass(frozen=True, eq=False)
class Averages:
    """count: how many vectors of a batch have each index, on average. total: their sums."""

    count: Float[Tensor, "k"]
    total: Float[Tensor, "k d"]

    @classmethod
    def start(cls, entries: Float[Tensor, "k d"], batch: int) -> Averages:
        """Those of a codebook that every entry of has its share of the batch: a count of 1 would look dead at once."""
        count = torch.full_like(entries[:, 0], batch / entries.shape[0])
        return cls(count, entries * count[:, None])

    def update(self, vectors: Float[Tensor, "n d"], indices: Int[Tensor, "n"], decay: float = 0.99) -> Averages:
        """After one batch. With decay 0 the entries are the means of their vectors: a step of Lloyd's."""
        count = torch.bincount(indices, minlength=len(self.count)).to(self.count)
        total = sums(vectors, indices, len(self.total))
        return Averages(decay * self.count + (1 - decay) * count, decay * self.total + (1 - decay) * total)

    def entries(self, smoothing: float = 1e-5) -> Float[Tensor, "k d"]:
        """The codebook. smoothing: added to every count, so that none is zero."""
        whole = self.count.sum()
        smoothed = (self.count + smoothing) / (whole + len(self.count) * smoothing) * whole
        return self.total / smoothed[:, None]

    def revive(self, vectors: Float[Tensor, "n d"], threshold: float, generator: torch.Generator) -> Averages:
        """Entries with a count below the threshold moved to vectors of the batch, no two to the same one while there are enough; each gets
        its share of the batch as its count. generator: on the processor, wherever the vectors are."""
        dead = (self.count < threshold).nonzero()[:, 0]
        drawn = torch.randperm(len(vectors), generator=generator).to(dead.device)
        chosen = drawn[torch.arange(len(dead), device=dead.device) % len(vectors)]
        count, total = self.count.clone(), self.total.clone()
        count[dead] = len(vectors) / len(count)
        total[dead] = vectors[chosen] * count[dead, None]
        return Averages(count, total)
