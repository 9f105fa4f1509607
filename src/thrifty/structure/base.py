"""The verbs of structure: a method only says what each unit is worth, or each block; all else is done for it.

    score       what each unit of a block is worth: those worth least are removed
    compensate  what the matrices that read removed units become, so that less is lost
    influence   what a whole block changes: those that change least are removed

A width pruner is a frozen dataclass below `Pruner` with a `name` and `score`:

    def score(self, view, seen):
        return {units.space: view.norms(units, view.columns(units)) for units in view.units}

`view.units` are the units that the user wants cut and the architecture can do without (`base.anatomy.Units`: neurons, heads, experts,
channels, states); the result has an entry [count] for the space of each, higher is better. `view.read(path)` is the matrix of a linear,
[out, in] float32; `view.values(units, member)` [count, values] is what each unit owns in one member of `units.members`, which `view.rows`
and `view.columns` sort by side. `seen` is what calibration knows: `seen.inputs[space name]` the moments of what each stage reads,
`seen.grams[space name]` its products where `needs` holds `gram`, `seen.rows` the hidden states that enter the block. `view.module` is the
block itself with its weights and `view.forward(rows)` what it makes of rows: for anything else that has to be seen. A method below
`GradientPruner` is given instead, before any block is cut, what the loss of the whole model changes with: `seen.slopes[path]`.

The base then keeps equally many units in each block (widths that plain configs can hold; `uneven` ranks over all blocks), removes the rest
from every tensor they lie in (`core.cut`), and writes. A method that changes weights besides overrides `compensate` and returns a `Change`:
full-size matrices by path (what they hold for removed units is ignored), and biases by path. It sets `adds_bias` where readers without a
bias need one; `view.holds_bias` says whether the architecture can hold it. `scores` names the kinds of units that a method can judge.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from thrifty.base.anatomy import Block, Linear, Member, Space, UnitKind, Units
from thrifty.base.errors import InputError
from thrifty.base.method import Method
from thrifty.base.records import Cut
from thrifty.core.cut import indices, unit_energies
from thrifty.core.moments import Moments
from thrifty.core.statistics import Statistics


class View(ABC):
    """One block, as a method sees it.

    block: its description. units: what may be cut. module: the block with its weights, in the type of the calibration pass.
    """

    block: Block
    units: tuple[Units, ...]
    module: nn.Module

    @abstractmethod
    def read(self, path: str) -> Float[Tensor, "out in"]:
        """The matrix of a linear or a router, float32."""

    @abstractmethod
    def key(self, name: str) -> str:
        """The disk key of a parameter of the block, by its name in the model. Raises InputError where it has none of its own."""

    @abstractmethod
    def tensor(self, source: str) -> Float[Tensor, "..."]:
        """A tensor of the block by its disk key, in disk layout, float32."""

    @abstractmethod
    def values(self, units: Units, member: Member) -> Float[Tensor, "count values"]:
        """What each unit owns in one of the tensors that hold it."""

    @abstractmethod
    def holds_bias(self, path: str) -> bool:
        """Whether the result has a bias at this linear: its own, or one that `adds_bias` asked for and the architecture can hold."""

    @abstractmethod
    def bias(self, path: str) -> Float[Tensor, "out"]:
        """The bias of a linear, float32; zeros where it has none."""

    @abstractmethod
    def forward(self, rows: Float[Tensor, "rows *length width"]) -> Float[Tensor, "rows *length width"]:
        """What the block makes of hidden states."""

    def linear(self, path: str) -> Linear:
        """The description of a linear or a router."""
        return next(linear for linear in (*self.block.linears, *self.block.routers) if linear.path == path)

    @staticmethod
    def rows(units: Units) -> list[Member]:
        """Where units are rows of matrices: what writes them."""
        return [member for member in units.members if member.side == "rows"]

    @staticmethod
    def columns(units: Units) -> list[Member]:
        """Where units are columns of matrices: what reads them."""
        return [member for member in units.members if member.side == "columns"]

    @staticmethod
    def owned(matrix: Float[Tensor, "out in"], units: Units, member: Member) -> Float[Tensor, "count values"]:
        """What each unit owns of values that lie as the matrix of a member does."""
        lines = matrix if member.side == "rows" else matrix.T
        return lines[indices(member, units.count)].flatten(1)

    def norms(self, units: Units, members: Sequence[Member]) -> Float[Tensor, "count"]:
        """The Euclidean norm of everything that each unit owns in these members; in all of its tensors where it owns whole ones."""
        total = torch.zeros(units.count)
        for member in members:
            total += unit_energies(self.tensor(member.source), member, units.count)
        for unit, keys in enumerate(units.owned):
            total[unit] += sum(float(self.tensor(key).square().sum()) for key in keys)
        return total.sqrt()


@dataclass(frozen=True)
class Slopes:
    """What the loss of the whole model changes with the entries of a matrix: the mean over rows of its gradient, and of the square of that
    of each row."""

    mean: Float[Tensor, "out in"]
    square: Float[Tensor, "out in"]


@dataclass(frozen=True)
class Seen:
    """What calibration saw at one block, all blocks before it already cut; slopes, by path of the matrix, before any was.

    rows: hidden states that enter it. inputs: moments of what each stage reads, by the name of the space; grams: products, where asked for.
    seed: of whatever a method draws. slope_products: the mean over tokens of g g^T, g what the loss of the whole model changes with where a
    linear puts out, by its path.
    """

    rows: Float[Tensor, "rows *length width"]
    inputs: Mapping[str, Moments] = field(default_factory=dict)
    grams: Mapping[str, Statistics] = field(default_factory=dict)
    seed: int = 0
    slopes: Mapping[str, Slopes] = field(default_factory=dict)
    slope_products: Mapping[str, Float[Tensor, "out out"]] = field(default_factory=dict)

    def size(self, space: Space) -> Float[Tensor, "width"]:
        """The root mean square of each input of a space; of a token where it was not seen, 1."""
        found = self.inputs.get(space.name)
        return torch.ones(space.width) if found is None or found.tokens == 0 else found.square.sqrt()


@dataclass(frozen=True)
class Change:
    """New values of what stays: matrices [out, in] of full size, and biases [out], by path of the linear."""

    weights: Mapping[str, Float[Tensor, "out in"]] = field(default_factory=dict)
    biases: Mapping[str, Float[Tensor, "out"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruner(Method, ABC):
    """A step that removes units of every block, equally many in each unless it is told otherwise.

    scores: the kinds of units that it can judge. calibrated: whether it looks at calibration rows.

    ratio: the share of the units of each kind that is removed. cut: kinds of units; those that an architecture does not have, or cannot
    have fewer of, are left as they are. uneven: whether blocks may keep different numbers of them, those worth most in the whole model;
    such a result is loaded with the modeling file that lies beside it, or after `import thrifty`. multiple_of: how many neurons or channels
    stay is a multiple of this, the nearest one.
    """

    family: ClassVar[str] = "structure"
    scores: ClassVar[tuple[UnitKind, ...]] = ("neurons", "heads", "experts", "channels", "states")
    calibrated: ClassVar[bool] = True

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.2
    cut: tuple[UnitKind, ...] = ("neurons", "heads", "channels")
    uneven: bool = False
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = next((kind for kind in self.cut if kind not in self.scores), None)
        if wrong is not None or not self.cut:
            raise InputError(f"{self.name}: cut takes {', '.join(self.scores)}; got {wrong or 'nothing'}")

    @property
    def adds_bias(self) -> bool:
        """Whether linears that read removed units need a bias."""
        return False

    def kept(self, units: Units) -> int:
        """How many of these units stay."""
        if self.ratio == 0:
            return units.count
        step = self.step_of(units)
        wanted = math.floor(units.count * (1 - self.ratio) / step + 0.5) * step
        return min(units.count, max(step, units.least, wanted))

    def step_of(self, units: Units) -> int:
        """What the number of these units that stay is a multiple of."""
        return self.multiple_of if units.kind in ("neurons", "channels") else 1

    @abstractmethod
    def score(self, view: View, seen: Seen) -> dict[Space, Float[Tensor, "count"]]:
        """What each unit of `view.units` is worth, by space."""

    def compensate(self, view: View, cuts: Sequence[Cut], seen: Seen) -> Change:
        """New values for what reads the units that these cuts remove."""
        return Change()


@dataclass(frozen=True)
class GradientPruner(Pruner, ABC):
    """A pruner that judges units of all blocks by the loss of the whole model, before any of them is cut.

    rows: calibration rows, the first ones, whose loss is followed back; what enters each block of them is kept in memory.
    """

    rows: Annotated[int, Field(ge=1)] = 16


@dataclass(frozen=True)
class BlockPruner(Method, ABC):
    """A step that removes whole blocks.

    ratio: the share of the blocks that is removed, at least one. first, last: blocks at either end that are never removed.
    """

    family: ClassVar[str] = "structure"

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    first: Annotated[int, Field(ge=0)] = 1
    last: Annotated[int, Field(ge=0)] = 1

    @abstractmethod
    def influence(
        self, entering: Float[Tensor, "rows *length width"], leaving: Float[Tensor, "rows *length width"]
    ) -> Float[Tensor, "rows *length"]:
        """How much a block changes each of these hidden states; the mean over all is what the block is worth."""


def share_out(scores: Sequence[Sequence[Float[Tensor, "count"]]], kept: int, step: int, least: int) -> list[int]:
    """How many units each block keeps when all blocks together keep `kept` each on average: those worth most, wherever they are.

    scores: of each block, those of its units; several where a block has several sets that must keep equally many (experts). They are
    standardized within each set before they are compared. step: units stay in so many at once. least: how many must stay in each.
    """
    pieces = [torch.stack([_standard(one).sort(descending=True).values for one in block]).mean(0).split(step) for block in scores]
    needed = max(1, -(-least // step))
    counts = [sum(len(piece) for piece in mine[:needed]) for mine in pieces]
    rest = [
        (-float(piece.mean()), place, block, len(piece)) for block, mine in enumerate(pieces) for place, piece in enumerate(mine[needed:])
    ]
    budget = kept * len(scores) - sum(counts)
    for _, _, block, size in sorted(rest):
        if size <= budget:
            counts[block] += size
            budget -= size
    return counts


def _standard(scores: Float[Tensor, "count"]) -> Float[Tensor, "count"]:
    values = torch.nan_to_num(scores.to(torch.float64), nan=-1e30)
    return (values - values.mean()) / values.std(correction=0).clamp_min(1e-12)


def choose(scores: Float[Tensor, "count"], kept: int) -> Int[Tensor, "kept"]:
    """The units worth most, in ascending order; of equals the earlier ones. Scores that are not numbers count least."""
    order = torch.sort(torch.nan_to_num(scores, nan=-math.inf), descending=True, stable=True).indices
    return order[:kept].sort().values
