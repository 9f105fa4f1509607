"""The verb of tuning: what one token, or one image, costs, given what the tuned model says of it and what the original says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Method
from thrifty.train import Schedule


@dataclass(frozen=True)
class Tuner(Method, ABC):
    """A step that trains all matrices that the steps before it solved, together, by the outputs of the whole model.

    A matrix on a grid stays on it, what was pruned stays zero. steps, batch: of the optimizer, and calibration windows in each. rate: how
    far a weight moves in one, about, in steps of its grid, or in parts of the root mean square of its row where it is on none; and a scale
    as a share of itself. warm_up: share of the steps in which the rate rises. final: what it falls to, as a share. rank: of the change of a
    matrix that is on no grid; 0 is any change. ends: of grids: `learned`, by a factor of each scale (LSQ), `statistics`, by factors of
    running statistics of its weights, and the zero point with it, fixed grids of inputs likewise (Q-SAM2), or `range`, where the weights
    reach. moves: share of the groups
    of additive codebooks whose codes may change after a step; 0 trains codebooks and scales alone. reference: whether the original model is
    needed.
    """

    family: ClassVar[str] = "tune"
    reference: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    batch: Annotated[int, Field(ge=1)] = 4
    rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.05
    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    rank: Annotated[int, Field(ge=0)] = 0
    ends: Literal["learned", "statistics", "range"] = "learned"
    moves: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def schedule(self) -> Schedule:
        """When it moves how far."""
        return Schedule(self.steps, self.batch, self.rate, self.warm_up, self.final)

    @abstractmethod
    def loss(
        self,
        found: Float[Tensor, "tokens vocabulary"],
        expected: Float[Tensor, "tokens vocabulary"] | None,
        targets: Int[Tensor, "tokens"],
    ) -> Float[Tensor, "tokens"]:
        """What each token costs: found are the tuned model's logits, expected the original's where `reference`, targets the next tokens. Of
        an image classifier each image counts as a token, and its targets are IGNORED."""
