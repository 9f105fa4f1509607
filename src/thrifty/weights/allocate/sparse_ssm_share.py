"""Sparsity by matrix from how much it reads (SparseSSM): projections whose inputs are small give up more.

    H = (2 / n) sum over tokens of x x^T,    q = sum_j H_jj^2 / dim(H)
    s = S + alpha at the smallest q of a role, falling evenly to S at the n_e-th;    S - alpha at the largest, rising evenly to S

n_e is half of the matrices of that role, `ends` at most; those in between and those of other roles get S. Each role, as `in_proj` and
`out_proj`, makes up its own mean, which holds whatever the sizes. Where n_e is 1 both get half of alpha.
Source: Tuo and Wang (2025), arXiv 2506.09613.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import Field

from thrifty.base.anatomy import Block, Linear
from thrifty.base.method import Paper
from thrifty.core.shares import filled, shifted_to_mean
from thrifty.weights.layerwise import HIGHEST, Layerwise, Look, Part


@dataclass(frozen=True)
class SparseSSMShare(Layerwise):
    """alpha: how far shares go from what is asked for, at most. ends: matrices at either end that differ from it, at most. roles: of the
    matrices that share, each among its own; all roles where none is named."""

    name: ClassVar[str] = "sparse_ssm_share"
    calibrated: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Tuo, Wang",
        2025,
        "SparseSSM: Efficient Selective Structured State Space Models Can Be Pruned in One-Shot",
        "2506.09613",
    )

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.04
    ends: Annotated[int, Field(ge=1)] = 24
    roles: tuple[str, ...] = ("in_proj", "out_proj")

    @property
    def wants(self) -> str:
        return f"matrices of the roles {', '.join(self.roles)}"

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(roles=()),)

    def parts(self, block: Block, linears: Sequence[Linear]) -> list[Part]:
        chosen = (linear for linear in linears if not self.roles or linear.role in self.roles)
        return [Part(linear.path, linear.role, (linear,)) for linear in chosen]

    def score(self, look: Look) -> float:
        """q of a matrix, whose pieces read the same; a matrix that no row reached has none."""
        seen = next(iter(look.energies.values()), None)
        return float("nan") if seen is None else float((2 * seen.double()).square().mean())

    def share(self, scores: Sequence[float], sizes: Sequence[int], sparsity: float) -> list[float]:
        order = sorted(range(len(scores)), key=filled(scores).__getitem__)
        ends, offsets = min(self.ends, len(scores) // 2), [0.0] * len(scores)
        for place in range(ends):
            height = self.alpha * (1 - place / (ends - 1) if ends > 1 else 0.5)
            offsets[order[place]], offsets[order[-1 - place]] = height, -height
        return shifted_to_mean(offsets, sizes, sparsity, HIGHEST)
