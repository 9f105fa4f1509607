"""Remove the language layers of a vision-language-action model that turn hidden states least, the outermost ones apart: EfficientVLA.

    importance = 1 - mean over samples and tokens of cos(x entering, x leaving)

The measure is ShortGPT's; the first and the last block stay, as what they do is not seen in an angle. Of a model with several chains the
language blocks are meant. The other two parts of the paper, fewer visual tokens and a cached action head, act while a model runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from thrifty.base.method import Paper
from thrifty.core.angles import turned
from thrifty.structure.base import BlockPruner


@dataclass(frozen=True)
class EfficientVLA(BlockPruner):
    """Blocks by influence, the outermost protected."""

    name: ClassVar[str] = "efficient_vla"
    paper: ClassVar[Paper | None] = Paper(
        "Yang, Wang, Wen, Luo, Zou, Zhang, Wen and Zhang",
        2025,
        "EfficientVLA: Training-Free Acceleration and Compression for Vision-Language-Action Models",
        arxiv="2506.10100",
        part="the removal of language layers",
    )

    def influence(
        self, entering: Float[Tensor, "rows *length width"], leaving: Float[Tensor, "rows *length width"]
    ) -> Float[Tensor, "rows *length"]:
        return turned(entering, leaving)
