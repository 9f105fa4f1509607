"""SparseGPT: pruning column by column, each error made up for by the columns that are still free.

    min over V with few non-zeros of  tr((W - V) G (W - V)^T),   solved by `obs` with the target `unstructured` or `n_m`

Source: Frantar and Alistarh (2023), arXiv 2301.00774.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.method import Paper
from thrifty.weights.base import Treatment
from thrifty.weights.pruning import Pruning
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.unstructured import Unstructured


@dataclass(frozen=True)
class SparseGPT(Pruning):
    """sparsity: share of zeros in every `mask_block` inputs. pattern: `2:4` keeps 2 of every 4 inputs instead. damping: see `obs`. share:
    who gets how much of the sparsity. back_solve: whether what stays takes the values that lose least."""

    name: ClassVar[str] = "sparsegpt"
    paper: ClassVar[Paper] = Unstructured.paper

    mask_block: Annotated[int, Field(ge=1)] = 128
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    def expand(self) -> Treatment:
        return self.treatment(OBS(damping=self.damping), Unstructured(self.sparsity, self.mask_block))
