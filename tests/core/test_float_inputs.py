"""Rounding of inputs to small floats: equal to the library of the format to the bit."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from compressed_tensors.quantization.utils import generate_gparam
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thrifty.core.activations import Rounding
from thrifty.core.float_inputs import global_scale, rounded_floats
from thrifty.core.scaled import STANDARDS
from thrifty.export.compressed import Inputs

CASES = {
    "token": Rounding(8, "token", True, standard="fp8"),
    "tensor": Rounding(8, "tensor", True, standard="fp8"),
    "fixed": Rounding(8, "tensor", True, torch.tensor([0.0131]), torch.zeros(1), "fp8"),
    "mxfp8": Rounding(8, "group", True, standard="mxfp8"),
    "mxfp4": Rounding(4, "group", True, standard="mxfp4"),
    "nvfp4": Rounding(4, "group", True, torch.tensor([global_scale(9.7)]), torch.zeros(1), "nvfp4"),
}


def draw(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * scale * torch.exp2(torch.randint(-6, 3, (shape[-1],), generator=generator))


def by_library(inputs: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """What the library does to the inputs of a linear whose config we write."""
    module = nn.Linear(inputs.shape[-1], 1)
    module.quantization_status = QuantizationStatus.COMPRESSED
    if rounding.scale is not None:
        setattr(module, "input_global_scale" if rounding.standard == "nvfp4" else "input_scale", rounding.scale)
    return forward_quantize(module, inputs, "input", QuantizationArgs(**Inputs.of(rounding).to_config()))


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 10_000), power=st.integers(-30, 12))
@settings(max_examples=25, deadline=None)
def test_a_rounding_is_that_of_the_library(name: str, seed: int, power: int) -> None:
    inputs = draw(seed, 2, 5, 64, scale=2.0**power)
    inputs[0, 3] = 0
    assert torch.equal(CASES[name](inputs), by_library(inputs, CASES[name]))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "nvfp4", "token"])
def test_ties_and_ends_are_those_of_the_library(name: str) -> None:
    """Numbers of the format, halves between them, and group maxima on both sides of where an exponent or a scale changes."""
    eighths = torch.arange(-56, 57).repeat(2)[:224].reshape(1, 7, 32) / 8
    steps = torch.linspace(0.9, 8.1, 7 * 32).reshape(1, 7, 32)
    edges = torch.tensor([1.75, 1.7499999, 3.5, 3.4999998, 6.0, 7.0, 448.0])[None, :, None] * torch.tensor([1.0] + [0.3] * 31)
    for inputs in (eighths, steps, edges):
        assert torch.equal(CASES[name](inputs), by_library(inputs, CASES[name]))


def test_the_global_scale_is_that_of_the_library() -> None:
    for most in (1e-3, 0.4, 9.7, 3.2e4):
        expected = generate_gparam(torch.tensor(-most / 2), torch.tensor(most))
        torch.testing.assert_close(torch.tensor([global_scale(most)]), expected, rtol=1e-7, atol=0)
    assert global_scale(0.0) == 1.0


@given(st.integers(0, 10_000), st.sampled_from(["fp8", "mxfp8", "mxfp4", "nvfp4"]))
@settings(deadline=None)
def test_errors_are_relative_to_the_largest_of_a_group(seed: int, standard: str) -> None:
    """Half a step below the largest number: 1 / 16 for e4m3, 1 / 6 for e2m1, and what a scale that is too small cuts off."""
    inputs = draw(seed, 4, 64)
    most = float(inputs.abs().max())
    scale = torch.tensor([global_scale(most)]) if standard == "nvfp4" else None
    rounded = rounded_floats(inputs, standard, by_token=True, scale=scale)
    size = STANDARDS[standard].group_size or 64
    largest = inputs.reshape(4, -1, size).abs().amax(-1, keepdim=True)
    error = (rounded - inputs).reshape(4, -1, size).abs()
    bound = {"fp8": 1 / 16, "mxfp8": 1 / 16, "mxfp4": 1 / 4, "nvfp4": 1 / 4}[standard]
    assert bool((error <= bound * largest + most * 2**-9).all())
    assert bool((rounded * inputs >= 0).all())
    assert torch.equal(rounded_floats(torch.zeros(2, 64), standard, by_token=True, scale=scale), torch.zeros(2, 64))


@pytest.mark.parametrize("standard", ["mxfp4", "mxfp8", "nvfp4", "fp8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_become_one(standard: str, bad: float) -> None:
    values = draw(0, 2, 64)
    values[0, 3] = bad
    rounded = rounded_floats(values, standard, by_token=True, scale=torch.ones(1) if standard == "nvfp4" else None)
    assert not rounded[0, 3].isfinite()
    assert rounded[1].isfinite().all()


def test_half_precision_does_not_overflow() -> None:
    """60,000 is 1.83 times a power of two, which rounds up to 65,536."""
    inputs = torch.full((1, 32), 60_000.0)
    rounding = Rounding(4, "group", True, standard="mxfp4")
    assert rounding(inputs).eq(65_536).all()
    assert rounding(inputs.half()).eq(65_504).all()


def test_the_type_is_kept_and_gradients_pass_straight_through() -> None:
    for rounding in CASES.values():
        inputs = draw(1, 4, 64).to(torch.bfloat16).requires_grad_()
        rounded = rounding(inputs)
        assert rounded.dtype == torch.bfloat16 and not torch.equal(rounded, inputs)
        rounded.sum().backward()
        assert torch.equal(inputs.grad, torch.ones_like(inputs))
