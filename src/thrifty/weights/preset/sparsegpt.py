"""SparseGPT: pruning column by column, each error made up for by the columns that are still free.

    min over V with few non-zeros of  tr((W - V) G (W - V)^T),   solved by `obs` with the target `unstructured` or `n_m`

Source: Frantar and Alistarh (2023), arXiv 2301.00774.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.weights.base import Preset, Treatment
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.n_m import Pattern, of_pattern
from thrifty.weights.target.unstructured import Unstructured


@dataclass(frozen=True)
class SparseGPT(Preset):
    """sparsity: share of zeros in every `mask_block` inputs. pattern: `2:4` keeps 2 of every 4 inputs instead. damping: see `obs`."""

    name: ClassVar[str] = "sparsegpt"
    paper: ClassVar[Paper] = Unstructured.paper

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    pattern: Pattern | None = None
    mask_block: Annotated[int, Field(ge=1)] = 128
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    def expand(self) -> Treatment:
        target = of_pattern(self.pattern) if self.pattern else Unstructured(self.sparsity, self.mask_block)
        return Treatment(OBS(damping=self.damping), target)
