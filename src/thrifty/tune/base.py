"""The verb of tuning: what one token costs, given what the tuned model says of it and what the original says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Method
from thrifty.train import Schedule
from thrifty.tune.rates import LayerRates


@dataclass(frozen=True)
class Tuner(Method, ABC):
    """A step that trains all matrices that the steps before it solved, together, by the outputs of the whole model.

    A matrix on a grid stays on it, what was pruned stays zero. steps, batch: of the optimizer, and calibration windows in each. rate: how
    far a weight moves in one, about, in steps of its grid, or in parts of the root mean square of its row where it is on none; and a scale
    as a share of itself. warm_up: share of the steps in which the rate rises. final: what it falls to, as a share. rank: of the change of a
    matrix that is on no grid; 0 is any change. rates: what gives every matrix a rate of its own; none, all move alike. reference: whether
    the original model is needed.
    """

    family: ClassVar[str] = "tune"
    reference: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    batch: Annotated[int, Field(ge=1)] = 4
    rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.05
    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    rank: Annotated[int, Field(ge=0)] = 0
    rates: LayerRates | None = None

    @property
    def schedule(self) -> Schedule:
        """When it moves how far."""
        every = 0 if self.rates is None else self.rates.every
        return Schedule(self.steps, self.batch, self.rate, self.warm_up, self.final, every=every)

    @abstractmethod
    def loss(
        self,
        found: Float[Tensor, "tokens vocabulary"],
        expected: Float[Tensor, "tokens vocabulary"] | None,
        targets: Int[Tensor, "tokens"],
    ) -> Float[Tensor, "tokens"]:
        """What each token costs: found are the tuned model's logits, expected the original's where `reference`, targets the next tokens."""
