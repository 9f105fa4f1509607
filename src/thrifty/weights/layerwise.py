"""Allocators that decide for each part of a model what share of its weights becomes zero, before anything is solved.

A pass over the original model gives every part a score; then the shares follow from all scores, so that their mean over all weights is
what the target says. A part is a block, whose matrices all get the same share, unless an allocator says otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Block, Linear
from thrifty.base.records import Problem
from thrifty.core.shares import scaled_to_mean, stretched
from thrifty.weights.base import Allocator, Solver, Target

HIGHEST = 0.998
"""The largest share of zeros that a part gets, as published, where the mean of all is not larger itself."""


class Part(NamedTuple):
    """Linears of a block that get one share of zeros.

    name: unique in the model. budget: parts of the same one make up for each other; each budget has the mean that the target says.
    """

    name: str
    budget: str
    linears: tuple[Linear, ...]


@dataclass(frozen=True)
class Look:
    """What a pass over the original model saw of a part, and of the block that it is in.

    weights: [out, in] of the matrices of the part, by path; those that hold several in one are cut apart. energies: [in] mean
    square of their inputs, by path, where rows pass and reached them. influence: 1 - the mean cosine between what enters the block and what
    leaves it, NaN where no rows pass.
    """

    weights: Mapping[str, Float[Tensor, "out in"]]
    energies: Mapping[str, Float[Tensor, "in"]] = field(default_factory=dict)
    influence: float = float("nan")


class Layerwise(Allocator):
    """Shares of zeros by part. `calibrated` says whether the score looks at what calibration rows do, or at the weights alone."""

    @property
    def wants(self) -> str:
        """What the parts are, in words."""
        return "blocks"

    def accepts(self, target: Target) -> None:
        target.with_sparsity(0.5)

    def allocate(self, problem: Problem, solver: Solver, target: Target) -> Target:
        """The target as it is: what a part gets was decided before, and stands there."""
        return target

    def parts(self, block: Block, linears: Sequence[Linear]) -> list[Part]:
        """The parts that these linears of a block make up; those in none get what the target says."""
        return [Part(block.path, "", tuple(linears))] if linears else []

    @abstractmethod
    def score(self, look: Look) -> float:
        """What the share of a part follows from."""

    @abstractmethod
    def share(self, scores: Sequence[float], sizes: Sequence[int], sparsity: float) -> list[float]:
        """The share of zeros of each part of a budget; its mean, weighed by the sizes, is `sparsity`."""

    def operations(self, out_features: int, in_features: int) -> float:
        """Multiplications that the score of one matrix takes, about."""
        return float(out_features * in_features)

    def working_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that are held while one matrix is looked at, beside it."""
        return 12 * out_features * in_features


@dataclass(frozen=True)
class ByRank(Layerwise):
    """Shares in proportion to 1 - epsilon for the lowest score to 1 + epsilon for the highest, and evenly in between.

    epsilon: how far shares go apart. rising: whether a high score means many zeros.
    """

    rising: ClassVar[bool] = True

    epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.3

    def share(self, scores: Sequence[float], sizes: Sequence[int], sparsity: float) -> list[float]:
        places = [place if self.rising else 1 - place for place in stretched(scores)]
        return scaled_to_mean([1 + self.epsilon * (2 * place - 1) for place in places], sizes, sparsity, HIGHEST)
