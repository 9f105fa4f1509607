"""The spectrum of each matrix of a model: how heavy its tail is, with and without what its shape adds, and how many directions it has.

alpha is the exponent of `thrifty.core.spectra`: about 2 to 4 in well-trained matrices, more where training made less of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from thrifty.core.spectra import Rule, effective_rank, eigenvalues, farms, hill, stable_rank


@dataclass(frozen=True)
class Spectrum:
    """One matrix. alpha: of its own eigenvalues; farms_alpha: of those of windows of one shape; both as `rule` says where a tail starts."""

    name: str
    role: str
    block: int
    out_features: int
    in_features: int
    alpha: float
    farms_alpha: float
    stable_rank: float
    effective_rank: float


@dataclass(frozen=True)
class BlockSpectrum:
    """The means over the matrices of a block, which are what sparsity is shared out by."""

    block: int
    alpha: float
    farms_alpha: float


def spectrum(
    weight: Float[Tensor, "out in"], name: str, role: str, block: int, rule: Rule = "peak", side: int = 2000, positions: int = 15
) -> Spectrum:
    """The spectrum of one matrix; side, positions: of the windows (`thrifty.core.spectra.windows`)."""
    values = eigenvalues(weight)
    return Spectrum(
        name,
        role,
        block,
        weight.shape[0],
        weight.shape[1],
        hill(values, rule),
        farms(weight, side, 1.0, positions, rule),
        stable_rank(values),
        effective_rank(values),
    )


def by_block(spectra: Sequence[Spectrum]) -> list[BlockSpectrum]:
    """Means of each block, in the order in which the blocks come."""
    found = []
    for block in dict.fromkeys(one.block for one in spectra):
        inside = [one for one in spectra if one.block == block]
        means = [sum(getattr(one, name) for one in inside) / len(inside) for name in ("alpha", "farms_alpha")]
        found.append(BlockSpectrum(block, *means))
    return found
