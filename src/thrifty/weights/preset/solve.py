"""Any solver into any target: the algebra itself, of which the other presets are named points.

    min over V in `into` of  tr((W - V) G (W - V)^T),   by a solver, after `share` has shared out the budget

    solve: {by: obs, into: {int: {bits: 4}}}
    solve: {by: awp, into: {both: {mask: {n_m: {n: 2, m: 4}}, grid: {int: {bits: 4}}}}}
    solve: {by: obs, into: {int: {bits: 3, group_size: 0, symmetric: false}}, share: baq}
    solve: {by: obs, into: {int: {bits: 8, group_size: 0}}, activation: dynamic}
    solve: {by: descent, into: {affine: {bits: 2, range: mse}}, heal: learned_rounding}

These five are rounding as GPTQ does it, 2:4 sparsity on a grid by projected gradients, bits of its own for each input, inputs that are
rounded, too, and codes that are tuned together once all matrices of a block are solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.weights.allocate.uniform import Uniform
from thrifty.weights.base import Activation, Allocator, Healer, Preset, Solver, Target, Treatment
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.int import Int


@dataclass(frozen=True)
class Solve(Preset):
    """by: the solver. into: the target. share: who gets how much of the target's budget.
    activation: what the inputs are rounded to while the model runs. heal: what is given back once all matrices of a block are solved."""

    name: ClassVar[str] = "solve"

    by: Solver = OBS()
    into: Target = Int()
    share: Allocator = Uniform()
    activation: Activation | None = None
    heal: Healer | None = None

    def expand(self) -> Treatment:
        return Treatment(self.by, self.into, self.share, self.heal, self.activation)
