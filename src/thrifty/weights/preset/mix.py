"""Each matrix of a model gets its own target out of a few: bit widths and number formats are mixed within one budget.

    min over choice  sum_l loss_l(choice_l)   subject to   sum_l cost_l(choice_l) <= budget

The loss of a choice is measured before anything is chosen: every matrix is solved with every target and put into its block alone. With
d = block(x; V_l in W_l's place) - block(x) over the first `rows` calibration rows x, what it costs is

    weigh: loss     loss_l(t) = sum over tokens of (g . d)^2 / 2n,   n predictions, the divergence of what the whole model predicts, about
    weigh: block    loss_l(t) = ||d||^2 / ||block(x)||^2

g is how a random direction of all predictions changes with what leaves the block, followed back through the model once; directions are
drawn so that the mean of the first is the second order of the divergence, but for what tokens have to do with each other
(`pipeline.slopes`). Not every model predicts: where none is said, `loss` where the model has one, `block` elsewhere.

Then `share` chooses, and the matrices are solved as if the recipe had named the targets one by one. All linears that a step selects share
its budget; those with other settings by `override` have a budget of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from thrifty.base.errors import InputError
from thrifty.weights.allocate.optimal import Optimal
from thrifty.weights.base import Healer, Preset, Sharing, Solver, Target, Treatment
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.int import Int

NOMINAL = 4096
"""Width of the matrix whose rate stands for all while nothing is chosen yet."""


@dataclass(frozen=True)
class Mix(Preset):
    """budget: in `bits`, the mean bits of a weight, its scales and zero points counted, whatever file it will lie in; in `bytes`, what the
    matrices take in the file, all together; in `time`, the mean time of a weight's multiplication, which takes 1 / speed.

    into: the targets to choose from. speeds: of each target, for `time`. by: the solver. share: how the choice is made. rows: calibration
    rows that every choice is tried on. weigh: what a choice is judged by. heal: what is given back once all matrices of a block are solved
    into what was chosen.
    """

    name: ClassVar[str] = "mix"

    budget: Annotated[float, Field(gt=0)] = 4.5
    unit: Literal["bits", "bytes", "time"] = "bits"
    into: Annotated[tuple[Target, ...], Field(min_length=2, max_length=64)] = (
        Int(2, range="mse"),
        Int(3, range="mse"),
        Int(4, range="mse"),
        Int(5, range="mse"),
        Int(6, range="mse"),
        Int(8, range="mse"),
    )
    speeds: tuple[Annotated[float, Field(gt=0)], ...] = ()
    by: Solver = OBS(act_order=True)
    share: Sharing = Optimal()
    rows: Annotated[int, Field(ge=1)] = 8
    weigh: Literal["loss", "block"] | None = None
    heal: Healer | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in range(len(self.into)):
            self.treatment(option)  # settings that do not go together are refused here
        if len(self.speeds) != (len(self.into) if self.unit == "time" else 0):
            raise InputError(f"mix: speeds is wrong, it needs one for each target with unit: time, and none else; got {list(self.speeds)}")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Two ways to fit the same grid, so that files of every architecture can hold both."""
        return (cls(budget=4.5, into=(Int(4), Int(4, range="mse"))),)

    def treatment(self, option: int) -> Treatment:
        """What is done to a matrix that gets this option."""
        return Treatment(self.by, self.into[option], heal=self.heal)

    def expand(self) -> Treatment:
        """What stands for the choice until it is made: the target whose rate comes nearest to the budget from below."""
        rates = [target.outline(NOMINAL, NOMINAL).stored_bits / NOMINAL**2 for target in self.into]
        within = [rate for rate in rates if rate <= self.budget] if self.unit == "bits" else []
        return self.treatment(rates.index(max(within) if within else min(rates)))
