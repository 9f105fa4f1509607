"""Steps that leave the hidden states fewer channels, the same ones in the whole model.

A method is a frozen dataclass below `Narrower` with a `name` and `directions`: the orthonormal directions of the hidden states that stay,
from the products of what the norms of all blocks see. All matrices that read or write hidden states get smaller, embeddings and head too,
and the result keeps its architecture (`models.sliced`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Method, Need
from thrifty.core.slicing import Pair, keeping_mean, without_mean


@dataclass(frozen=True)
class Products:
    """What a pass over the model has seen at its norms, float64.

    gram: [width, width] the sum over all norms of the mean of h h^T. pairs: gives for each norm, anew whenever it is called, the mean of
    x x^T, x what the norm puts out before its gain, and A^T A, A what reads it, the gain in it, as a share of the energy that it puts out.
    """

    gram: Float[Tensor, "width width"]
    pairs: Callable[[], Iterable[Pair]]

    def along(self, basis: Float[Tensor, "width others"]) -> Products:
        """The products of the same, looked at along some directions only."""
        return Products(
            basis.T @ self.gram @ basis, lambda: ((basis.T @ gram @ basis, basis.T @ read @ basis) for gram, read in self.pairs())
        )


@dataclass(frozen=True)
class Narrower(Method, ABC):
    """A step that leaves the hidden states fewer channels.

    ratio: the share of the channels that goes. multiple_of: how many stay is a multiple of this, the nearest one.
    """

    family: ClassVar[str] = "structure"
    needs: ClassVar[frozenset[Need]] = frozenset({"gram"})
    calibrated: ClassVar[bool] = True

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 8

    def width(self, hidden: int) -> int:
        """How many channels stay. Raises InputError where none would go though some are to."""
        if self.ratio == 0:
            return hidden
        kept = max(self.multiple_of, math.floor(hidden * (1 - self.ratio) / self.multiple_of + 0.5) * self.multiple_of)
        if kept >= hidden:
            raise InputError(
                f"{self.name}: {self.ratio} of {hidden} channels is less than half of multiple_of, {self.multiple_of}; take a larger ratio"
            )
        return kept

    def matrix(self, seen: Products, kept: int, *, keeps_mean: bool) -> Float[Tensor, "width kept"]:
        """Q: its columns are the channels that stay. keeps_mean: one of them is for the mean, which the norms take off."""
        if not keeps_mean:
            return self.directions(seen, kept)
        return keeping_mean(self.directions(seen.along(without_mean(len(seen.gram))), kept - 1))

    @property
    def counts_alike(self) -> bool:
        """Whether `gram` is of hidden states that are normalised first, so that all tokens of all blocks count alike."""
        return True

    @property
    def sees_readers(self) -> bool:
        """Whether `directions` looks at `pairs`."""
        return False

    def operations(self, hidden: int, norms: int) -> float:
        """About how many operations in double precision it takes to find the directions."""
        return 25.0 * hidden**3

    @abstractmethod
    def directions(self, seen: Products, kept: int) -> Float[Tensor, "width kept"]:
        """Orthonormal columns, float64."""

    def reading(self, gram: Float[Tensor, "width width"], matrix: Float[Tensor, "width kept"]) -> Float[Tensor, "width kept"] | None:
        """R: what matrices that read through a norm are multiplied by; None for Q.

        gram: the mean of x x^T, x what this norm puts out before its gain.
        """
        return None
