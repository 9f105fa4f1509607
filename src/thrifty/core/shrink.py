"""Weights without what their inputs never ask for: the matrix of least norm that still gives the same outputs.

    minimize ||V||_F  subject to  X V^T = X W^T        V = W P,  P the projector on the span of the inputs
    minimize mean ||x (V - W)^T||^2 + ridge ||V||_F^2  V = W G (G + ridge I)^-1,  G the mean of x x^T

Both need the Gram matrix alone, and share its eigenvectors. Where G has full rank and the ridge is 0, V is W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """The inputs of a matrix by direction: vectors [in, in] in columns, energies [in] from small to large, float64; tokens: how many were
    seen."""

    vectors: Float[Tensor, "in in"]
    energies: Float[Tensor, "in"]
    tokens: int

    @classmethod
    def of(cls, gram: Float[Tensor, "in in"], tokens: int) -> Spectrum:
        """That of a Gram matrix; directions below its rounding error have no energy."""
        energies, vectors = torch.linalg.eigh(gram.to(torch.float64))
        noise = torch.finfo(gram.dtype).eps * gram.shape[0] * energies[-1].clamp_min(0)
        return cls(vectors, torch.where(energies > noise, energies, 0.0), tokens)

    def kept(self, ridge: float) -> Float[Tensor, "in"]:
        """What is kept of a weight in each direction, 0 to 1; ridge: in units of the mean energy of an input."""
        raised = self.energies + ridge * self.energies.mean()
        return torch.where(raised > 0, self.energies / torch.where(raised > 0, raised, 1.0), 0.0)

    def shrink(self, weight: Float[Tensor, "out in"], ridge: float) -> Float[Tensor, "out in"]:
        """W G (G + ridge I)^-1; W P for a ridge of 0."""
        return ((weight.to(torch.float64) @ self.vectors * self.kept(ridge)) @ self.vectors.T).to(weight.dtype)

    def lost(self, weight: Float[Tensor, "out in"], ridge: float) -> tuple[float, float]:
        """The share of the output's energy that `shrink` loses on the inputs that were seen, and the one expected on others.

        The second by generalized cross-validation (Golub, Heath and Wahba 1979): the first over the squared share of the degrees of freedom
        that the estimate did not use up. It takes the tokens to be independent.
        """
        spoken = self.energies > 0
        energies = self.energies[spoken]
        outputs = (weight.to(torch.float64) @ self.vectors).square().sum(0)[spoken]
        total = float((outputs * energies).sum())
        # At a ridge of 0 nothing is lost of what was seen, and nothing may be free: the limit of small ridges is meant.
        least = max(ridge * float(self.energies.mean()), 1e-9 * float(energies.max())) if len(energies) else 0.0
        if total == 0:
            return 0.0, 0.0
        gone = least / (energies + least)
        free = (max(0, self.tokens - len(energies)) + float(gone.sum())) / max(self.tokens, 1)
        seen = float((outputs * energies * gone.square()).sum()) / total
        return seen, seen / min(free, 1.0) ** 2
