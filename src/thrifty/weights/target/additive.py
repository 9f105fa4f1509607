"""Additive codebooks: neighbouring inputs of a row are a sum of codewords, one from each of a few codebooks, times the row's scale.

    (v_i,jg .. v_i,jg+g-1) = scale_i * (C_1[k_ij1] + .. + C_M[k_ijM]),    g inputs a group, C_m of 2^B entries

    bits a weight = M B / g  +  16 M 2^B g / (out in)  +  16 / in

The last two are the codebooks, in float16, and the scales, in bfloat16. A small matrix has few weights to share its codebooks: for one of
256 x 256, two of 2^8 entries cost a bit a weight, and {codebooks: 4, bits: 4} with groups of 8 loses less at the same total. Codebooks
are found by k-means on what the ones before left, each input weighed by its importance, and codes by beam search; `aqlm` goes on from there
against the Gram matrix. `--format thrifty` stores them at the rate above, and `thrifty export --to aqlm` takes them from there into
the layout that the package aqlm and vLLM run; otherwise the result is stored dense and marked `simulated`.
Source: Egiazarian, Panferov, Kuznedelev, Frantar, Babenko and Alistarh (2024), arXiv 2401.06118; for diffusion models, with groups of a
kernel's size: AQUATIC-Diff (2025), arXiv 2506.05960.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError, RunError
from thrifty.base.method import Paper
from thrifty.base.records import Encoded
from thrifty.core.codebooks.additive import beam_search_in, fit_residual, rate_of_sums, sum_codewords
from thrifty.core.codebooks.gram import Coded, held_codebooks, held_scale
from thrifty.weights.base import Points, Target

HARDLY_SEEN = 1e-4
"""Inputs with less than this share of the mean importance count as if they had as much: they must not end up anywhere."""


@dataclass(frozen=True)
class Additive(Target):
    """codebooks: codewords that are added up. bits: of each code. group_size: inputs of a group. beam: sums kept while codes are chosen."""

    name: ClassVar[str] = "additive"
    paper: ClassVar[Paper] = Paper(
        "Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh",
        2024,
        "Extreme Compression of Large Language Models via Additive Quantization",
        "2401.06118",
    )
    joint_rows: ClassVar[bool] = True
    holds_zero: ClassVar[bool] = False
    by_entry: ClassVar[bool] = False
    sums: ClassVar[bool] = True

    codebooks: Annotated[int, Field(ge=1, le=8)] = 2
    bits: Annotated[int, Field(ge=1, le=12)] = 8
    group_size: Annotated[int, Field(ge=1, le=64)] = 8
    beam: Annotated[int, Field(ge=1, le=64)] = 8

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(bits=4, beam=2),)

    @property
    def run(self) -> int:
        return self.group_size

    def check(self, out_features: int, in_features: int, name: str) -> None:
        if in_features % self.group_size:
            fitting = next(size for size in range(self.group_size, 0, -1) if in_features % size == 0)
            raise InputError(f"group_size {self.group_size} does not divide the width {in_features} of {name}; {fitting} does")

    def rate(self, out_features: int, in_features: int) -> float:
        """Bits of a weight in a matrix of this shape, codebooks and scales counted."""
        return rate_of_sums(self.codebooks, self.bits, self.group_size, (out_features, in_features))

    def outline(self, out_features: int, in_features: int) -> Encoded:
        tensors = {
            "codes": torch.empty(out_features, in_features // self.group_size, self.codebooks, device="meta", dtype=self.code_type),
            "codebooks": torch.empty(self.codebooks, 2**self.bits, self.group_size, device="meta"),
            "scale": torch.empty(out_features, 1, device="meta"),
        }
        rate = self.rate(out_features, in_features)
        return Encoded("additive", tensors, (out_features, in_features), rate, self.group_size, simulated=True)

    @property
    def code_type(self) -> torch.dtype:
        """What codes are held in."""
        return torch.uint8 if self.bits <= 8 else torch.uint16

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> AdditivePoints:
        values = values.to(torch.float32)
        importance = torch.ones_like(values[0]) if importance is None else at_least(importance.to(torch.float32))
        scale = held_scale(values.square().mean(1, keepdim=True).sqrt())
        groups = (values / scale).reshape(-1, self.group_size)
        weights = importance.view(-1, self.group_size).repeat(values.shape[0], 1)
        found = fit_residual(groups, self.codebooks, 2**self.bits, torch.Generator().manual_seed(0), weights)
        return AdditivePoints(self, held_codebooks(found.codebooks), scale, importance)

    def encode(self, coded: Coded) -> Encoded:
        """How the sums are held; codebooks and scales must be ones that 16 bits hold."""
        tensors = {
            "codes": coded.codes.to(self.code_type),
            "codebooks": coded.codebooks.to(torch.float32),
            "scale": coded.scale.to(torch.float32),
        }
        shape = coded.codes.shape[0], coded.codes.shape[1] * self.group_size
        return Encoded("additive", tensors, shape, self.rate(*shape), self.group_size, simulated=True)


class AdditivePoints(Points):
    """Sums of codewords of settled codebooks, with settled scales. The codes of what was decided last are kept: no sum tells its own."""

    adaptive = True

    def __init__(
        self, target: Additive, codebooks: Float[Tensor, "m k g"], scale: Float[Tensor, "out one"], importance: Float[Tensor, "in"]
    ) -> None:
        self.target, self.codebooks, self.scale, self.importance = target, codebooks, scale, importance
        groups = importance.shape[0] // target.group_size
        self._codes = torch.zeros(groups, scale.shape[0], target.codebooks, dtype=torch.int32, device=scale.device)
        self._entered: dict[int, Float[Tensor, "g out"]] = {}

    @property
    def coded(self) -> Coded:
        """What was decided last."""
        return Coded(self._codes.transpose(0, 1).contiguous(), self.codebooks, self.scale)

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        size = self.target.group_size
        for group, (part, importance) in enumerate(zip(values.split(size, 1), self.importance.split(size), strict=True)):
            self._codes[group] = self._nearest(part, importance)
        return self.coded.decode().to(values.dtype)

    def enter(self, values: Float[Tensor, "out n"], columns: Int[Tensor, "n"], curvature: Float[Tensor, "n"]) -> None:
        size = self.target.group_size
        for part, places, weights in zip(values.split(size, 1), columns.split(size), curvature.split(size), strict=True):
            group = int(places[0]) // size
            codes = self._nearest(part, at_least(weights))
            self._codes[group] = codes
            self._entered[group] = (sum_codewords(self.codebooks, codes) * self.scale).T.contiguous()

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        group, place = divmod(index, self.target.group_size)
        out.copy_(self._entered[group][place])

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        encoded = self.target.encode(self.coded)
        if not torch.equal(encoded.decode(), values.to(torch.float32)):
            raise RunError("additive: only what was decided last can be encoded; this is a defect, please report it")
        return encoded

    def _nearest(self, part: Float[Tensor, "out g"], importance: Float[Tensor, "g"]) -> Int[Tensor, "out m"]:
        """The codes of one group of inputs."""
        part, importance = part.to(torch.float32), importance.to(torch.float32)
        return beam_search_in(torch.diag(importance), part / self.scale * importance, self.codebooks, self.target.beam)


def at_least(importance: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Importances with those of inputs that were hardly seen raised; all alike where nothing was seen."""
    mean = importance.mean()
    return torch.where(mean > 0, importance.clamp_min(HARDLY_SEEN * mean), torch.ones_like(importance))
