"""Put two matrices of low rank in place of each one, so that outputs on calibration rows change least: SVD-LLM.

    min over B [out, k], A [k, in] of  tr((W - B A) G (W - B A)^T),    G = mean of x x^T,    k = share * out * in / (out + in)

With a factor S S^T = G, the truncated SVD of W S gives the least loss that any two matrices of this rank can have, on the rows that G was
taken from. `whiten: false` is the plain truncated SVD. Every matrix keeps the same share of its weights, and the result needs the modeling
file that lies beside it: no architecture of transformers has such matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.base.anatomy import Anatomy
from thrifty.base.method import Paper
from thrifty.core.low_rank import rank_for, truncate
from thrifty.structure.base import Seen, View
from thrifty.structure.rebuild import Form, Plan, Rebuilder, Rebuilt, gram_of, separable


@dataclass(frozen=True)
class SVDLLM(Rebuilder):
    """ratio: the share of the weights of each matrix that goes. whiten: whether it matters how large inputs are, and what they share."""

    name: ClassVar[str] = "svd_llm"
    paper: ClassVar[Paper | None] = Paper(
        "Wang, Zheng, Wan, Zhang",
        2024,
        "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
        "2403.07378",
    )

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    whiten: bool = True

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        return self.whiten

    def plan(self, anatomy: Anatomy) -> Plan:
        found, said = separable(anatomy, self.name)
        forms = {}
        for linear in found:
            out, into = linear.out_features, linear.in_features
            forms[linear.path] = Form(out, into, rank_for(out, into, 1 - self.ratio))
        return Plan(forms, warnings=said)

    def rebuild(self, view: View, seen: Seen, plan: Plan) -> Rebuilt:
        mine = [linear.path for linear in view.block.linears if linear.path in plan.forms]
        grams = {path: gram_of(view.block, path, seen) if self.whiten else None for path in mine}
        return Rebuilt({path: truncate(view.read(path), plan.forms[path].rank, grams[path]) for path in mine})
