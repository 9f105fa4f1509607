"""Remove the blocks that turn hidden states least: ShortGPT's block influence.

    influence = 1 - mean over tokens of cos(x entering, x leaving)

One pass over the whole model scores all blocks; those of least influence go, wherever they stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.angles import turned
from thrifty.structure.base import BlockPruner


@dataclass(frozen=True)
class ShortGPT(BlockPruner):
    """Blocks by influence, none of them protected."""

    name: ClassVar[str] = "short_gpt"
    paper: ClassVar[Paper | None] = Paper(
        "Men, Xu, Zhang, Wang, Lin, Lu, Han and Chen",
        2024,
        "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        arxiv="2403.03853",
    )

    first: Annotated[int, Field(ge=0)] = 0
    last: Annotated[int, Field(ge=0)] = 0

    def influence(
        self, entering: Float[Tensor, "rows *length width"], leaving: Float[Tensor, "rows *length width"]
    ) -> Float[Tensor, "rows *length"]:
        return turned(entering, leaving)
