"""Fixed point: every entry is an integer of some bits times a power of two.

    value = code * 2^-f,   code -2^(bits - 1) .. 2^(bits - 1) - 1,   f = bits - 2 - floor(log2 max |w|)

That is what multipliers without scaling hardware compute with. Its step is up to twice that of an integer grid with a scale of its own
(`int`), so it loses more at the same bits. `range: mse` takes of f, f - 1 and f + 1 what has the least squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.core.formats import Format, fixed_format
from thrifty.core.grids import Range
from thrifty.core.scaled import ScaleRule, Scales, fit_scales
from thrifty.weights.scaled import GroupSize, Scaled


@dataclass(frozen=True)
class Fixed(Scaled):
    """bits: 2 to 16. group_size: inputs that share the place of the point, 0 for the whole row."""

    name: ClassVar[str] = "fixed"

    bits: Annotated[int, Field(ge=2, le=16)] = 8
    group_size: GroupSize = 0
    range: Range = "minmax"

    @property
    def form(self) -> Format:
        return fixed_format(self.bits)

    @property
    def rule(self) -> ScaleRule:
        return "power_of_two"

    def scales(self, groups: Float[Tensor, "out groups size"], importance: Float[Tensor, "groups size"] | None) -> Scales:
        return fit_scales(groups, self.form, "power_of_two", self.range, importance)
