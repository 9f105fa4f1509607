"""What all small number formats share: every entry is a number of the format times the scale of its group."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.formats import Format
from thrifty.core.grids import Step, grouped
from thrifty.core.refit import refit_step
from thrifty.core.scaled import ScaleRule, Scales, nearest_scale, round_to
from thrifty.weights.base import Points, Target, check_groups, outlined

GroupSize = Annotated[int, Field(ge=0)]
"""Inputs that share a scale; 0 for the whole row."""

Stretch = Annotated[float, Field(ge=0.5, le=2)]
"""What a scale is multiplied by after it was found."""

_STORED: dict[ScaleRule, torch.dtype] = {"real": torch.bfloat16, "power_of_two": torch.uint8, "e4m3": torch.float8_e4m3fn}
"""The narrowest type that holds such scales, an exponent for powers of two."""


class Scaled(Target):
    """Numbers of one format with one scale a group of inputs."""

    group_size: GroupSize

    @property
    @abstractmethod
    def form(self) -> Format:
        """The format of the numbers."""

    @property
    def standard(self) -> str:
        """What others call it, where they have files for it (see `core.scaled`)."""
        return ""

    @property
    def scale_rule(self) -> ScaleRule:
        """What scales may be."""
        return "power_of_two"

    @abstractmethod
    def scales(self, groups: Float[Tensor, "out groups size"], importance: Float[Tensor, "groups size"] | None) -> Scales:
        """The scale of each group."""

    def check(self, out_features: int, in_features: int, name: str) -> None:
        check_groups(self.group_size, in_features, name)

    def outline(self, out_features: int, in_features: int) -> Encoded:
        tensors = outlined(out_features, in_features, self.group_size, _STORED[self.scale_rule])
        tensors["numbers"] = self.form.numbers
        bits, standard = float(self.form.bits), self.standard
        return Encoded("numbers", tensors, (out_features, in_features), bits, self.group_size, standard, simulated=not standard)

    def fit(self, values: Float[Tensor, "out in"], importance: Float[Tensor, "in"] | None = None) -> ScaledPoints:
        groups = grouped(values, self.group_size)
        weights = None if importance is None else importance.reshape(groups.shape[1:]).to(values.dtype)
        return ScaledPoints(self, self.scales(groups, weights), values.shape[1])


class ScaledPoints(Points):
    """Numbers of a format with their scales."""

    def __init__(self, target: Scaled, scales: Scales, width: int) -> None:
        self.target, self.form, self.scales, self.group_size = target, target.form, scales, target.group_size
        self._columns = scales.local.T.contiguous().unbind(0)
        self._size = self.group_size or width

    def project(self, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return round_to(grouped(values, self.group_size), self.scales.local, self.form).reshape(values.shape)

    def snap(self, column: Float[Tensor, "out"], index: int, out: Float[Tensor, "out"]) -> None:
        scale = self._columns[index // self._size]
        torch.mul(self.form.nearest(column / scale), scale, out=out)

    def refit(
        self, values: Float[Tensor, "out in"], weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]
    ) -> tuple[ScaledPoints, Float[Tensor, "out in"]]:
        rule, whole = self.target.scale_rule, self.scales.whole
        step, values = refit_step(weight, values, gram, Step(self.scales.local, None), lambda exact: nearest_scale(exact, rule, whole))
        return ScaledPoints(self.target, Scales(step.scale, whole), values.shape[1]), values

    def encode(self, values: Float[Tensor, "out in"]) -> Encoded:
        codes = self.form.encode(grouped(values, self.group_size) / self.scales.local[..., None]).reshape(values.shape)
        tensors = {"codes": codes, "scale": self.scales.local.to(torch.float32), "numbers": self.form.numbers.to(values.device)}
        if self.scales.whole is not None:
            tensors["whole"] = torch.tensor([self.scales.whole], device=values.device)
        return replace(self.target.outline(values.shape[0], values.shape[1]), tensors=tensors)
