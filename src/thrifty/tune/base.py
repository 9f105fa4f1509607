"""The verbs of tuning: what a token or an image costs by the logits of the tuned model and of the original, or a row by their predictions
or their last hidden states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Kind
from thrifty.base.method import Method
from thrifty.train import Schedule
from thrifty.tune.rates import LayerRates


@dataclass(frozen=True)
class Tuner(Method, ABC):
    """A step that trains all matrices that the steps before it solved, together, by what the whole model puts out.

    A matrix on a grid stays on it, what was pruned stays zero. steps, batch: of the optimizer, and calibration rows in each. rate: how
    far a weight moves in one, about, in steps of its grid, or in parts of the root mean square of its row where it is on none; and a scale
    as a share of itself. warm_up: share of the steps in which the rate rises. final: what it falls to, as a share. rank: of the change of a
    matrix that is on no grid; 0 is any change. rates: what gives every matrix a rate of its own; none, all move alike. vectors: whether
    biases and the weights of norms are trained, too, in blocks all of whose matrices are. ends: of grids: `learned`, by a factor of each
    scale (LSQ), `statistics`, by factors of running statistics of its weights, and the zero point with it, fixed grids of inputs likewise
    (Q-SAM2), or `range`, where the weights reach. moves: share of the groups of additive codebooks whose codes may change after a step; 0
    trains codebooks and scales alone.

    reference: whether the original model is needed. kinds: of models that it can train; wants: the same in words. reads_logits: whether it
    judges by these, or by the predictions of a model that has none.
    """

    family: ClassVar[str] = "tune"
    reference: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]]
    wants: ClassVar[str]
    reads_logits: ClassVar[bool]

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    batch: Annotated[int, Field(ge=1)] = 4
    rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.05
    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    rank: Annotated[int, Field(ge=0)] = 0
    rates: LayerRates | None = None
    vectors: bool = False
    ends: Literal["learned", "statistics", "range"] = "learned"
    moves: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def schedule(self) -> Schedule:
        """When it moves how far."""
        every = 0 if self.rates is None else self.rates.every
        return Schedule(self.steps, self.batch, self.rate, self.warm_up, self.final, every=every)


@dataclass(frozen=True)
class TokenTuner(Tuner):
    """One that judges by logits, token by token."""

    kinds: ClassVar[tuple[Kind, ...]] = ("causal_lm",)
    wants: ClassVar[str] = "a causal language model, whose next tokens it trains by"
    reads_logits: ClassVar[bool] = True

    @abstractmethod
    def loss(
        self,
        found: Float[Tensor, "tokens vocabulary"],
        expected: Float[Tensor, "tokens vocabulary"] | None,
        targets: Int[Tensor, "tokens"],
    ) -> Float[Tensor, "tokens"]:
        """What each token costs: found are the tuned model's logits, expected the original's where `reference`, targets the next tokens. Of
        an image classifier each image counts as a token, and its targets are IGNORED."""


@dataclass(frozen=True)
class PredictionTuner(Tuner):
    """One that judges models without logits by the values that they predict, beside those of the original: the noise in each row."""

    @abstractmethod
    def prediction_loss(self, found: Float[Tensor, "rows *shape"], expected: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        """What each row costs."""


@dataclass(frozen=True)
class FeatureTuner(Tuner):
    """One that judges by what leaves the last block, normalized as the model does it, beside the same of the original."""

    kinds: ClassVar[tuple[Kind, ...]] = ("causal_lm", "masked_lm", "vision")
    wants: ClassVar[str] = "a language model or an image encoder with one chain of blocks, whose last hidden states it trains by"
    reads_logits: ClassVar[bool] = False

    @abstractmethod
    def loss(
        self, found: Float[Tensor, "rows tokens width"], expected: Float[Tensor, "rows tokens width"], leading: int
    ) -> Float[Tensor, "rows"]:
        """What each row costs. leading: tokens of an image that stand before its patches: the first for the image as a whole."""
