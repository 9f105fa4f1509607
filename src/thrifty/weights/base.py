"""The verbs of the algebra of weights. A published method is a point in the product of these axes.

target     the set that a matrix must end up in: grid points, few non-zeros, or both
solve      how a point of the set is reached: min over V in the set of tr((W - V) G (W - V)^T)
transform  an equivalent rewrite of the inputs beforehand
allocate   who gets how much of the budget
heal       what is given back once all matrices of a block are solved
activation what the inputs of a matrix are rounded to while the model runs
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.base.anatomy import Space
from thrifty.base.errors import InputError
from thrifty.base.method import Method
from thrifty.base.records import Curve, Encoded, Problem, Share, Solution
from thrifty.core.activations import Rounding
from thrifty.core.grids import Cells
from thrifty.core.hadamard import Rotation
from thrifty.core.masks import apply_mask
from thrifty.core.rewrite import Rewrite
from thrifty.core.statistics import Statistics
from thrifty.core.trainable import Codes


class Points(ABC):
    """The set that one matrix must end up in, fitted to its values: grids with their scales, masks with their counts."""

    adaptive: ClassVar[bool] = False
    """Whether `enter` decides something: then a sweep hands it the values that are left, as if the rest were free."""

    @abstractmethod
    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The nearest point of the set, in the norm that the set was fitted with."""

    def enter(self, values: Float[Tensor, "out n"], columns: Int[Tensor, "n"], curvature: Float[Tensor, "n"]) -> None:
        """A sweep is about to fix these columns: what depends on their present values is decided now.

        curvature: what an error in each column costs once the later columns have made up for it.
        """
        return None

    @abstractmethod
    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        """Write the nearest point for column `index` into `out`."""

    def cells(self) -> Cells | None:
        """`snap` as arithmetic that compiled code can do for many columns; None where it is another.

        A sweep asks once: masks that `enter` changes are changed in place. What overrides `snap` overrides this, too.
        """
        return None

    def refit(
        self, values: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
    ) -> tuple[Points, Float[Tensor, "out in"]]:
        """What entries share (scales, zero points), fitted to tr((W - V) G (W - V)^T) with the codes of `values` as they are.

        Returns the set with it and the values of the same codes there, whose loss is not higher; (self, values) where nothing is shared.
        """
        return self, values

    @abstractmethod
    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        """How a point of the set is held. `encode(values).decode()` equals `values` exactly."""


class Target(Method, ABC):
    """The set that a matrix must end up in.

    joint_rows: whether the rows of a matrix compete with each other, so that several matrices must not be stacked.
    holds_zero: whether zero is in every place, so that what an earlier step pruned can stay zero.
    run: number of consecutive inputs that are decided together, 0 where the order of the inputs does not matter.
    by_entry: whether every entry has a place of its own in the encoding. Where entries share codes, only what was decided last can be
    encoded.
    masks: whether a matrix belongs to the set by where its zeros are alone, whatever the other entries are. sums: whether its points are
    sums of codewords of its own codebooks (layout `additive`).
    """

    family: ClassVar[str] = "weights.target"
    joint_rows: ClassVar[bool] = False
    holds_zero: ClassVar[bool] = True
    by_entry: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    sums: ClassVar[bool] = False

    @property
    def run(self) -> int:
        """Consecutive inputs that are decided together; 0 where a sweep may take the inputs in any order."""
        return 0

    @property
    def codes(self) -> Codes | None:
        """Which codes layout `int` has them in, where they are evenly spaced and each entry has its own; None where they are not."""
        return None

    @abstractmethod
    def check(self, out_features: int, in_features: int, name: str) -> None:
        """Raise InputError, naming the linear, when a matrix of this shape cannot be held."""

    def outline(self, out_features: int, in_features: int) -> Encoded:
        """What `encode` gives for a matrix of this shape, its tensors on the meta device: enough to know its size."""
        return dense(torch.empty(out_features, in_features, device="meta"))

    def density(self, width: int) -> float:
        """The share of the entries of rows of `width` inputs that may be other than zero."""
        return 1.0

    @property
    def nominal_sparsity(self) -> float:
        """The share of zeros that is asked for, before it becomes whole numbers of entries."""
        return 0.0

    def with_sparsity(self, sparsity: float) -> Target:
        """The same set with this share of zeros. Raises InputError where that cannot be chosen freely."""
        raise InputError(f"{self.name} has no share of zeros that could differ by matrix; take top_k or unstructured")

    @abstractmethod
    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> Points:
        """The set for a matrix like `values`. importance: weight of each input's squared error (None: all equal)."""


class Solver(Method, ABC):
    """How a point of the target is reached: min tr((W - V) G (W - V)^T) over V in the target."""

    family: ClassVar[str] = "weights.solve"

    @property
    def calibrated(self) -> bool:
        """Whether the result depends on the Gram matrix."""
        return True

    @property
    def joint_rows(self) -> bool:
        """Whether what a row becomes depends on the other rows of its matrix, so that several matrices must not be stacked."""
        return False

    def accepts(self, target: Target) -> None:
        """Raise InputError when this solver cannot reach points of this target."""
        return None

    @abstractmethod
    def solve(self, problem: Problem, target: Target) -> Solution:
        """A point of the target."""


class Transform(Method, ABC):
    """An equivalent rewrite of a space that makes its consumers easier to compress."""

    family: ClassVar[str] = "weights.transform"
    wants: ClassVar[str] = "a norm or a matrix before them that takes on a scale"
    """What a space must have for this, in words."""
    for_rounded_inputs: ClassVar[bool] = False
    """Whether this is of use only where inputs are rounded."""
    while_running: ClassVar[bool] = False
    """Whether the consumers turn their inputs themselves, which readers of the result have to do while the model runs."""

    def suits(self, space: Space) -> bool:
        """Whether what this does to a space can be taken on by its producers and undone by its consumers."""
        return bool(space.producers) and space.commutes_with in ("scale", "any")

    @abstractmethod
    def rewrite(
        self, space: Space, weights: list[Float[Tensor, "out width"]], statistics: Statistics, treatment: Treatment | None
    ) -> Rewrite | None:
        """The rewrite of `space`, whose consumers have these weights; None leaves it as it is.

        treatment: what comes next for the consumers, for methods that search against it; None where none of them is solved.
        """


class Turn(Method, ABC):
    """An orthonormal map of the hidden states between all blocks, taken on by every matrix that reads or writes them."""

    family: ClassVar[str] = "weights.transform"

    @abstractmethod
    def rotation(self, width: int, keeps_mean: bool) -> Rotation:
        """The map for hidden states of this width; keeps_mean: whether the mean of a row must stay what it was."""


class Sharing(Method, ABC):
    """Which of the options each part of a model gets, so that all of them together stay within a budget."""

    family: ClassVar[str] = "weights.allocate"

    @abstractmethod
    def share(self, curves: Sequence[Curve], budget: float) -> Share:
        """One option for each part, given in the order of the model; the costs add up to `budget` at most.

        Raises InputError when even the cheapest options cost more.
        """

    @staticmethod
    def of(curves: Sequence[Curve], options: Sequence[int], gap: float | None = None) -> Share:
        """The share with these options, in the order of the parts."""
        pairs = list(zip(curves, options, strict=True))
        loss = sum(curve.losses[option] for curve, option in pairs)
        cost = sum(curve.costs[option] for curve, option in pairs)
        return Share({curve.name: option for curve, option in pairs}, loss, cost, gap)


class Allocator(Method, ABC):
    """Who gets how much of the budget that a target stands for.

    within_matrix: whether it is shared out inside one matrix, so that several matrices must not be stacked. calibrated: whether who gets
    what depends on calibration data.
    """

    family: ClassVar[str] = "weights.allocate"
    within_matrix: ClassVar[bool] = False
    calibrated: ClassVar[bool] = False

    def accepts(self, target: Target) -> None:
        """Raise InputError when the budget of this target cannot be shared out by this allocator."""
        return None

    @abstractmethod
    def allocate(self, problem: Problem, solver: Solver, target: Target) -> Target:
        """The target with the budget shared out."""


Output = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""output(matrices, rows): what a block makes of rows of hidden states [rows, *length, width] with these matrices [out, in], by path;
gradients flow through it."""


class Healer(Method, ABC):
    """What gives back a part of the loss once all matrices of a block are solved.

    batch: rows whose way through the block is kept at once, for gradients.
    """

    family: ClassVar[str] = "weights.heal"
    batch: int

    def accepts(self, target: Target) -> None:
        """Raise InputError when points of this target cannot be changed by this healer."""
        return None

    @property
    @abstractmethod
    def row_passes(self) -> float:
        """How many rows' way through a block it takes as long as."""

    @abstractmethod
    def heal(
        self,
        starts: Mapping[str, tuple[Float[Tensor, "out in"], Encoded]],
        output: Output,
        rows: Float[Tensor, "rows *length width"],
        expected: Float[Tensor, "rows *length width"],
        seed: int,
    ) -> tuple[dict[str, Encoded], dict[str, float]]:
        """(better points for the matrices of a block, by path; figures for the report).

        starts: each original weight and the point that was found for it. rows: hidden states that reach the block. expected: what the
        original model makes of them.
        """


class Activation(Method, ABC):
    """What the inputs of a matrix are rounded to while the model runs."""

    family: ClassVar[str] = "weights.activation"

    @property
    def calibrated(self) -> bool:
        """Whether something of the grid is fixed beforehand, from calibration inputs."""
        return self.outline.scale is not None

    @property
    def by_channel(self) -> bool:
        """Whether each channel has a grid, which no reader has."""
        return self.outline.per == "channel"

    @property
    @abstractmethod
    def outline(self) -> Rounding:
        """A rounding of the kind that `fit` gives, before anything was seen."""

    @abstractmethod
    def fit(self, seen: Any) -> Rounding:
        """The rounding for inputs like those that were seen: a `Histogram` where the method is calibrated, a `ChannelHistogram` where it
        rounds by channel."""


@dataclass(frozen=True)
class Treatment:
    """What one step does to a matrix: share out the budget, solve, and heal once its block is solved; and to its inputs ever after."""

    solver: Solver
    target: Target
    allocator: Allocator | None = None
    heal: Healer | None = None
    activation: Activation | None = None

    def __post_init__(self) -> None:
        for part, family in ((self.solver, Solver), (self.target, Target)):
            if not isinstance(part, family):
                raise InputError(f"Treatment(solver, target): {part!r} is no {family.__name__.lower()}")
        self.solver.accepts(self.target)
        if self.allocator is not None:
            self.allocator.accepts(self.target)
        if self.heal is not None:
            self.heal.accepts(self.target)
            if self.allocator is not None and self.allocator.within_matrix:
                raise InputError(
                    f"{self.heal.name} tunes matrices that are on one grid, and {self.allocator.name} gives the inputs of a matrix grids "
                    "of their own; leave one of them out"
                )

    @property
    def calibrated(self) -> bool:
        """Whether the result depends on calibration data."""
        shares = self.allocator is not None and self.allocator.calibrated
        rounds = self.activation is not None and self.activation.calibrated
        return self.solver.calibrated or self.heal is not None or shares or rounds

    @property
    def alone(self) -> bool:
        """Whether a matrix must be solved on its own, not stacked with others that read the same input."""
        within = self.allocator is not None and self.allocator.within_matrix
        return self.target.joint_rows or self.solver.joint_rows or within


class Preset(Method, ABC):
    """A named point of the algebra."""

    family: ClassVar[str] = "weights.preset"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expand()  # settings that do not go together are refused here

    @abstractmethod
    def expand(self) -> Treatment:
        """The solver, the target and the allocation that the name stands for."""


def solve(problem: Problem, treatment: Treatment) -> Solution:
    """Apply a treatment to one matrix, or to several stacked ones that share an input."""
    target = treatment.target
    if treatment.allocator is not None:
        target = treatment.allocator.allocate(problem, treatment.solver, target)
    return treatment.solver.solve(problem, target)


# -- what an earlier step pruned ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held(Target):
    """`target` with some entries held at zero."""

    target: Target
    mask: Bool[Tensor, "out in"]

    def __post_init__(self) -> None:
        check_zero(self.target)

    @property
    def joint_rows(self) -> bool:  # type: ignore[override]
        return self.target.joint_rows

    @property
    def masks(self) -> bool:  # type: ignore[override]
        return self.target.masks

    @property
    def run(self) -> int:
        return self.target.run

    def check(self, out_features: int, in_features: int, name: str) -> None:
        self.target.check(out_features, in_features, name)

    def outline(self, out_features: int, in_features: int) -> Encoded:
        return self.target.outline(out_features, in_features)

    def density(self, width: int) -> float:
        return self.target.density(width)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> Points:
        return HeldPoints(self.target.fit(apply_mask(values, self.mask), importance), self.mask)


class HeldPoints(Points):
    """The points of a set that are zero outside a mask; the set holds zero in each place."""

    def __init__(self, points: Points, mask: Bool[Tensor, "out in"]) -> None:
        self.points = points
        self.mask = mask
        self.adaptive = points.adaptive

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return apply_mask(self.points.project(apply_mask(values, self.mask)), self.mask)

    def enter(self, values: Float[Tensor, "out n"], columns: Int[Tensor, "n"], curvature: Float[Tensor, "n"]) -> None:
        self.points.enter(apply_mask(values, self.mask[:, columns]), columns, curvature)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        self.points.snap(column, index, out)
        out.mul_(self.mask[:, index])

    def cells(self) -> Cells | None:
        cells = self.points.cells()
        if cells is None or cells.kept is not None:
            return None
        return replace(cells, kept=self.mask.T.contiguous())

    def refit(
        self, values: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
    ) -> tuple[Points, Float[Tensor, "out in"]]:
        points, values = self.points.refit(values, weight, gram)
        return (self if points is self.points else HeldPoints(points, self.mask)), values

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        return self.points.encode(values)


def hold(target: Target, mask: Bool[Tensor, "out in"]) -> Target:
    """`target` restricted to matrices that are zero where `mask` is False. Raises InputError for a target without zero."""
    return Held(target, mask)


def check_masks(target: Target, who: str) -> None:
    """Raise InputError when a target does more than say where zeros are; who: the method that chooses nothing else."""
    if not target.masks:
        raise InputError(f"{who} decides which weights stay and cannot be used with {target.name}; take top_k, unstructured or n_m")


def check_zero(target: Target, where: str = "") -> None:
    """Raise InputError, which begins with `where`, when a target cannot come after a step that makes zeros."""
    if not target.holds_zero:
        raise InputError(f"{where}{target.name} cannot keep the zeros of an earlier step; solve into it alone, or take int")


def outlined(out_features: int, in_features: int, group_size: int, scale_type: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The codes and the scales of such a matrix on the meta device; group_size: inputs that share a scale, 0 for the whole row."""
    groups = in_features // group_size if group_size else 1
    return {
        "codes": torch.empty(out_features, in_features, device="meta"),
        "scale": torch.empty(out_features, groups, dtype=scale_type, device="meta"),
    }


def check_groups(group_size: int, in_features: int, name: str) -> None:
    """Raise InputError, naming the linear and a size that fits, when groups of inputs do not divide its width; 0 is the whole row."""
    if group_size and in_features % group_size:
        tried = (128, 64, 32, 16, 8, *range(127, 4, -1))
        fitting = next((size for size in tried if size < in_features and in_features % size == 0), None)
        advice = f"{fitting} does" if fitting else "take 0 (one scale a row)"
        raise InputError(f"group_size {group_size} does not divide the width {in_features} of {name}; {advice}")


def dense(values: Float[Tensor, "out in"]) -> Encoded:
    """Values held as they are."""
    return Encoded("dense", {"values": values}, (values.shape[0], values.shape[1]), bits=8.0 * values.element_size())
