"""K-quants of llama.cpp: blocks of 256 inputs whose groups have scales, and lowest values, that are small multiples of two shared numbers.

    value = (D k_g) q - E m_g,   q a code, k_g and m_g whole numbers of the group, D and E float16 numbers of the block

    type   bits a weight   codes        groups of   k         m
    Q2_K   2.625           0 .. 3       16          0 .. 15   0 .. 15
    Q3_K   3.4375          -4 .. 3      16          -32 .. 31
    Q4_K   4.5             0 .. 15      32          0 .. 63   0 .. 63
    Q5_K   5.5             0 .. 31      32          0 .. 63   0 .. 63
    Q6_K   6.5625          -32 .. 31    16          -128 .. 127

All numbers are fitted by least squares, weighed by how much inputs matter where calibration data says so; `descent` fits them to the
outputs, too. 256 must divide the width. `--format thrifty` stores the blocks as they are, and `thrifty export --to gguf` writes them for
llama.cpp. Types with a second term need not hold zero, so pruned entries stay zero in Q3_K and Q6_K only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.grids import grouped
from thrifty.core.k_quants import BLOCK, FORMS, Form, Steps, codes_of, fit_steps, values_of
from thrifty.core.k_refit import refit_steps
from thrifty.weights.base import Points, Target


@dataclass(frozen=True)
class KQuant(Target):
    """type: one of the table above."""

    name: ClassVar[str] = "k_quant"

    type: Literal["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"] = "Q4_K"

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return ()  # the smallest models of other tests have no width that 256 divides

    @property
    def form(self) -> Form:
        """Its numbers of bits and levels."""
        return FORMS[self.type]

    @property
    def holds_zero(self) -> bool:  # type: ignore[override]
        return not self.form.minimum

    def check(self, out_features: int, in_features: int, name: str) -> None:
        if in_features % BLOCK:
            raise InputError(
                f"{self.type} has blocks of {BLOCK} inputs, which do not divide the width {in_features} of {name}; take int there "
                "(an `only` or `skip` says where), or everywhere"
            )

    def outline(self, out_features: int, in_features: int) -> Encoded:
        blocks, groups = in_features // BLOCK, in_features // self.form.group_size
        shapes = {"codes": in_features, "multiple": groups, "block_scale": blocks}
        if self.form.minimum:
            shapes |= {"minimum": groups, "block_minimum": blocks}
        tensors = {
            name: torch.empty(out_features, width, dtype=torch.float32 if name.startswith("block") else torch.int8, device="meta")
            for name, width in shapes.items()
        }
        return self._encoded(tensors, (out_features, in_features))

    def _encoded(self, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Encoded:
        return Encoded("k_quant", tensors, shape, self.form.rate, self.form.group_size, self.type, simulated=True)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> KQuantPoints:
        return KQuantPoints(self, fit_steps(values, self.form, importance))

    def encode(self, codes: Tensor, steps: Steps) -> Encoded:
        """How codes [out, in] are held."""
        tensors = {"codes": codes.to(torch.int8), "multiple": steps.scale.to(torch.int8), "block_scale": steps.block_scale}
        if self.form.minimum:
            tensors |= {"minimum": steps.minimum.to(torch.int8), "block_minimum": steps.block_minimum}
        return self._encoded(tensors, (codes.shape[0], codes.shape[1]))


class KQuantPoints(Points):
    """Codes with the steps of their groups."""

    def __init__(self, target: KQuant, steps: Steps) -> None:
        self.target, self.form, self.steps = target, target.form, steps
        step = steps.step
        self._steps = step.T.contiguous().unbind(0)
        self._inverses = torch.where(step == 0, 0.0, torch.where(step == 0, 1.0, step).reciprocal()).T.contiguous().unbind(0)
        self._offsets = steps.offset.T.contiguous().unbind(0)

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        codes = codes_of(grouped(values, self.form.group_size), self.steps, self.form)
        return values_of(codes, self.steps).reshape(values.shape).to(values.dtype)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        group = index // self.form.group_size
        offset = self._offsets[group]
        codes = torch.add(column, offset).mul_(self._inverses[group]).round_().clamp_(self.form.low, self.form.high)
        out.copy_(codes.to(torch.float32).mul_(self._steps[group]).sub_(offset).add_(0.0))

    def refit(
        self, values: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
    ) -> tuple[KQuantPoints, Float[Tensor, "out in"]]:
        steps, values = refit_steps(weight, values, gram, self.steps, self.form)
        return KQuantPoints(self.target, steps), values

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        codes = codes_of(grouped(values, self.form.group_size), self.steps, self.form)
        return self.target.encode(codes.reshape(values.shape), self.steps)
