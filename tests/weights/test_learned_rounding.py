"""Learned rounding against its first step written down plainly, on blocks whose output is known in closed form.

Cheng et al. (2023), arXiv 2309.05516.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.weights.problems import correlated_gram, draw
from thrifty.base.errors import InputError
from thrifty.base.records import Encoded, Problem
from thrifty.core.affine_grids import snap_offset
from thrifty.core.grids import code_limits, grouped, significant_bits, snap_scale
from thrifty.core.trainable import INSIDE
from thrifty.weights.allocate.baq import BAQ
from thrifty.weights.base import Treatment
from thrifty.weights.heal.learned_rounding import LearnedRounding
from thrifty.weights.preset.auto_round import AutoRound
from thrifty.weights.preset.solve import Solve
from thrifty.weights.solve.descent import Descent
from thrifty.weights.solve.round import Round
from thrifty.weights.target.affine import Affine
from thrifty.weights.target.int import Int
from thrifty.weights.target.top_k import TopK

GRIDS = (Int(2, 8, False), Int(2, 8), Int(3, 0, False, "mse"), Int(4, 16), Affine(2, 8), Affine(3, 16, "mse"))


def inputs(seed: int, width: int, rows: int = 24, length: int = 6) -> Tensor:
    factor = torch.linalg.cholesky(correlated_gram(seed, width) + 0.01 * torch.eye(width, dtype=torch.float64))
    return (draw(seed + 9, rows, length, width) @ factor.T).float()


def start(weight: Tensor, rows: Tensor, target: Int | Affine, solver: Descent | Round) -> Encoded:
    flat = rows.reshape(-1, rows.shape[-1])
    return solver.solve(Problem(weight, flat.T @ flat / len(flat), len(flat)), target).encoded


def shape_of(target: Int | Affine) -> tuple[int, int]:
    """(levels, significant bits of a scale)"""
    return (
        (target.levels, 8) if isinstance(target, Affine) else (target.level_count, significant_bits(target.level_count, target.symmetric))
    )


def linear(matrices: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    return rows @ matrices["a"].T


def gated(matrices: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    return torch.relu(rows @ matrices["a"].T) @ matrices["b"].T + rows


class Plain:
    """A grid of which every step is written down: what is rounded, what is stretched, and both gradients by hand (of a linear's output)."""

    def __init__(self, weight: Tensor, encoded: Encoded, target: Int | Affine) -> None:
        self.target, self.first = target, encoded.tensors["scale"][..., None]
        self.begin = encoded.tensors.get("offset")
        self.levels, self.bits = shape_of(target)
        zero = encoded.tensors["zero_point"].float()[..., None] if "zero_point" in encoded.tensors else torch.zeros_like(self.first)
        smallest, largest = code_limits(self.levels)
        self.zero, self.low, self.high = zero, smallest - zero, largest - zero
        self.weight = grouped(weight, target.group_size)
        multiple = grouped(encoded.tensors["codes"].float(), target.group_size) - zero
        exact = (self.weight - self.place(self.first)) / self.first
        self.offset = exact.clamp(multiple - INSIDE, multiple + INSIDE) - exact
        self.stretch = torch.ones_like(self.first)

    def place(self, scale: Tensor) -> Tensor | float:
        """What code 0 stands for."""
        return 0.0 if self.begin is None else snap_offset(self.begin[..., None], scale.float())

    def now(self) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, what is rounded, the code without its zero point)."""
        scale = snap_scale(self.first * self.stretch, self.bits)
        place = (self.weight - self.place(scale)) / scale + self.offset
        return scale, place, place.round().clamp(self.low, self.high)

    def values(self) -> Tensor:
        scale, _, code = self.now()
        return (scale * code + self.place(scale)).flatten(1)

    def step(self, slope: Tensor, rate: float) -> None:
        """slope: of the loss in the values."""
        scale, place, code = self.now()
        slope = slope.reshape(code.shape)
        inside = (place.round() >= self.low) & (place.round() <= self.high)
        along = slope * (code - torch.where(inside, (self.weight - self.place(scale)) / scale, 0.0))
        self.offset -= rate * torch.where(inside, slope, 0.0).sign()
        self.stretch = (self.stretch - rate * along.sum(-1, keepdim=True).sign()).clamp(0.5, 1.5)


@pytest.mark.parametrize("target", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_every_step_goes_against_the_sign_of_the_gradient(target: Int | Affine, steps: int):
    """Of a linear, mean (x (V - W)^T)^2 has the gradient 2 (V - W) G / out in V."""
    weight, rows = draw(1, 12, 16).double(), inputs(2, 16).double()
    encoded = start(weight, rows, target, Round())
    flat = rows.reshape(-1, 16)
    gram = flat.T @ flat / len(flat)
    plain, rate = Plain(weight, encoded, target), 0.2
    candidates = [plain.values()]
    for step in range(steps):
        plain.step((plain.values() - weight) @ gram, rate * (1 - step / steps))
        candidates.append(plain.values())
    errors = [float((rows @ (values - weight).T).square().mean()) for values in candidates]
    healer = LearnedRounding(steps, len(rows), rate)
    found, figures = healer.heal({"a": (weight, encoded)}, linear, rows, linear({"a": weight}, rows), 0)
    best = min(range(steps + 1), key=lambda step: errors[step])
    assert figures["block_error_before"] == pytest.approx(errors[0], rel=1e-6)
    assert figures["block_error"] == pytest.approx(errors[best], rel=1e-6)
    torch.testing.assert_close(found["a"].decode().double(), candidates[best], rtol=1e-6, atol=1e-7)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(GRIDS), st.integers(1, 12))
def test_it_is_never_worse_on_the_rows_that_judge_and_stays_in_the_target(seed: int, target: Int | Affine, iterations: int):
    matrices = {"a": draw(seed, 32, 16).float(), "b": draw(seed + 1, 16, 32).float()}
    rows = inputs(seed + 2, 16, rows=12)
    starts = {"a": (matrices["a"], start(matrices["a"], rows, target, Round()))}
    hidden = torch.relu(rows @ matrices["a"].T)
    starts["b"] = (matrices["b"], start(matrices["b"], hidden, target, Round()))
    healer = LearnedRounding(iterations, 8)
    expected = gated(matrices, rows)
    found, figures = healer.heal(starts, gated, rows, expected, seed)
    errors = [
        float((gated({path: encoded.decode() for path, encoded in chosen.items()}, rows) - expected).square().mean())
        for chosen in ({path: encoded for path, (_, encoded) in starts.items()}, found)
    ]
    assert figures["block_error"] <= figures["block_error_before"]
    assert [figures["block_error_before"], figures["block_error"]] == pytest.approx(errors, rel=1e-4)  # all 12 rows judge
    for path, encoded in found.items():
        outline, tensors = target.outline(*matrices[path].shape), encoded.tensors
        assert (encoded.layout, encoded.bits, encoded.group_size) == (outline.layout, outline.bits, outline.group_size)
        assert {name: tensor.shape for name, tensor in tensors.items()} == {name: tensor.shape for name, tensor in outline.tensors.items()}
        levels, bits = shape_of(target)
        smallest, largest = code_limits(levels)
        assert tensors["codes"].dtype == torch.int8 and int(tensors["codes"].min()) >= smallest and int(tensors["codes"].max()) <= largest
        assert torch.equal(snap_scale(tensors["scale"], bits), tensors["scale"])
        for name in tensors.keys() & {"zero_point", "offset"}:
            torch.testing.assert_close(tensors[name], starts[path][1].tensors[name], rtol=0, atol=1 / 16 if name == "offset" else 0)
    again, _ = healer.heal(starts, gated, rows, expected, seed)
    assert all(torch.equal(again[path].tensors["codes"], encoded.tensors["codes"]) for path, encoded in found.items())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_block_loses_much_less_than_by_rounding(symmetric: bool):
    """Also against an output that its inputs do not lead to: it makes up for what was lost before it."""
    matrices, target = {"a": draw(1, 32, 16).float(), "b": draw(2, 16, 32).float()}, Int(2, 8, symmetric, "mse")
    original = inputs(3, 16, rows=32)
    for rows in (original, original + 0.3 * draw(6, *original.shape).float()):
        starts = {"a": (matrices["a"], start(matrices["a"], rows, target, Round()))}
        hidden = torch.relu(rows @ starts["a"][1].decode().T)
        starts["b"] = (matrices["b"], start(matrices["b"], hidden, target, Round()))
        _, figures = LearnedRounding(60, 8).heal(starts, gated, rows, gated(matrices, original), 0)
        assert figures["block_error"] < 0.6 * figures["block_error_before"]


def test_matrices_that_no_row_reaches_stay_as_they_are():
    weight, rows = draw(3, 8, 16).float(), inputs(4, 16)
    starts = {path: (weight, start(weight, rows, Int(2, 8), Round())) for path in ("a", "b")}
    found, figures = LearnedRounding(10, 8).heal(starts, linear, rows, linear({"a": weight}, rows), 0)
    assert torch.equal(found["b"].decode(), starts["b"][1].decode())
    assert not torch.equal(found["a"].decode(), starts["a"][1].decode())
    assert figures["block_error"] < figures["block_error_before"]


def test_it_tunes_integer_grids_only():
    with pytest.raises(InputError, match="learned_rounding tunes matrices that are on one grid, and baq gives"):
        Solve(Descent(), Int(3, 0, False), BAQ(), heal=LearnedRounding())
    with pytest.raises(InputError, match="learned_rounding tunes evenly spaced grids"):
        Treatment(Descent(), TopK(), heal=LearnedRounding())
    assert AutoRound(2, 16, False, iterations=7).expand() == Treatment(Descent(), Int(2, 16, False, "mse"), heal=LearnedRounding(7, 8))
