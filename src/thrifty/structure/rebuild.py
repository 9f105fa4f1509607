"""Steps that put other tensors in place of a block's: matrices in two pieces, narrower values, fewer neurons, branches of low rank.

A method is a frozen dataclass below `Rebuilder` with a `name` and two verbs:

    plan      what will stand there, worked out from the anatomy before any weight is read: a `Form` for each linear that changes
    rebuild   the values, block by block, from the weights and what calibration has seen

Where the shapes stay as they are, the result keeps its config and loads in plain transformers; else its layers are described by the
modeling file that lies beside the weights (`export.uneven`).

A method below `LossRebuilder` plans by values: before any block is rebuilt it is shown each one, and what the loss of the whole model
changes with there (`survey`), and plans when it has seen all of them (`settle`); its `plan` is a stand-in of the same size until then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Anatomy, Block, Linear
from thrifty.base.errors import InputError
from thrifty.base.method import Method, Need
from thrifty.structure.base import Seen, View

Factors = tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]


@dataclass(frozen=True)
class Form:
    """What stands in place of a linear. rank: of two matrices in a row; 0 for one matrix. narrow: whether the values of its heads are fewer
    than the architecture has, so that others are left out on one side."""

    out_features: int
    in_features: int
    rank: int = 0
    narrow: bool = False

    @property
    def parameters(self) -> int:
        """Weights that it holds."""
        return self.rank * (self.out_features + self.in_features) if self.rank else self.out_features * self.in_features

    def tensors(self, linear: Linear) -> dict[str, tuple[int, ...]]:
        """Shapes of its tensors, its bias included, by what follows the path of the linear."""
        out, into = self.out_features, self.in_features
        if self.rank:
            found: dict[str, tuple[int, ...]] = {".down.weight": (self.rank, into), ".up.weight": (out, self.rank)}
        else:
            inside = ".kept.weight" if self.narrow else ".weight"
            found = {inside: (into, out) if linear.storage == "conv1d" and not self.narrow else (out, into)}
        if linear.bias_source is not None:
            found[self.bias_name] = (out,)
        return found

    @property
    def bias_name(self) -> str:
        """Where its bias lies, after the path of the linear."""
        return ".up.bias" if self.rank else ".kept.bias" if self.narrow else ".bias"


@dataclass(frozen=True)
class Plan:
    """What a step will make of a model.

    forms: by path of the linear. branches: (in, rank, out) of what is added to a module's output, by its path. sizes: config attribute ->
    its value in each layer. warnings: what could not be had as it was wanted.
    """

    forms: Mapping[str, Form] = field(default_factory=dict)
    branches: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rebuilt:
    """The values of one block: matrices [out, in] or (up, down) and biases by path of the linear, branches (up, down) by path of the
    module, other tensors in disk layout by their key. What is planned to change must be here; biases that are not stay as they are.

    lost: what a linear that stays one matrix loses of the energy that it puts out (the sum of mean squares), and that energy, by its path.
    """

    matrices: Mapping[str, Float[Tensor, "out in"] | Factors] = field(default_factory=dict)
    biases: Mapping[str, Float[Tensor, "out"]] = field(default_factory=dict)
    branches: Mapping[str, Factors] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    lost: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rebuilder(Method, ABC):
    """A step that puts other tensors in place of a block's. calibrated: whether it looks at calibration rows."""

    family: ClassVar[str] = "structure"
    needs: ClassVar[frozenset[Need]] = frozenset({"gram"})
    calibrated: ClassVar[bool] = True

    @abstractmethod
    def plan(self, anatomy: Anatomy) -> Plan:
        """What will stand where, for every block. Raises InputError where the architecture cannot have it."""

    @abstractmethod
    def rebuild(self, view: View, seen: Seen, plan: Plan) -> Rebuilt:
        """The tensors of one block."""


@dataclass(frozen=True)
class LossRebuilder(Rebuilder, ABC):
    """A step that puts other tensors in place of a block's, and plans by what the loss of the whole model changes with.

    `Seen.slope_products` is there in `survey` and in `rebuild`.

    rows: calibration rows, the first ones, whose loss is followed back; what enters each block of them is kept in memory.
    """

    rows: Annotated[int, Field(ge=1)] = 32

    @abstractmethod
    def survey(self, view: View, seen: Seen) -> Mapping[str, Float[Tensor, "options"]]:
        """What it has to know of each matrix of a block that it may change, by path."""

    @abstractmethod
    def settle(self, anatomy: Anatomy, found: Mapping[str, Float[Tensor, "options"]]) -> Plan:
        """The plan, from the surveys of all blocks; about as large as the stand-in."""

    def operations(self, out_features: int, in_features: int) -> float:
        """About how many operations in double precision one matrix takes, surveyed and rebuilt."""
        return 0.0


def separable(anatomy: Anatomy, name: str) -> tuple[list[Linear], tuple[str, ...]]:
    """(the matrices that two matrices may stand in place of, what is said of the others). Raises InputError where there are none.

    name: of the step."""
    found = [linear for linear in anatomy.linears if linear.part is None and linear.expert is None]
    if not found:
        raise InputError(f"{anatomy.architecture} has no matrices outside of its experts that {name} could put in two pieces")
    left = len(anatomy.linears) - len(found)
    return found, (f"{left} matrices of experts are left as they are: only single matrices are put in two pieces",) if left else ()


def gram_of(block: Block, path: str, seen: Seen) -> Float[Tensor, "in in"] | None:
    """Mean of x x^T of what a linear reads; None where no token reached it."""
    stage = next(stage for stage in block.stages if any(linear.path == path for linear in stage.linears))
    found = seen.grams.get(stage.reads.name)
    return None if found is None or not found.tokens else found.gram.to("cpu")
