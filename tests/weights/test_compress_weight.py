"""`thrifty.weights.compress_weight`: any method on a bare matrix, no model and no files."""

from __future__ import annotations

import pytest
import torch

from thrifty.base.errors import InputError
from thrifty.weights import compress_weight
from thrifty.weights.allocate.baq import BAQ
from thrifty.weights.base import Treatment
from thrifty.weights.preset.gptq import GPTQ
from thrifty.weights.preset.rtn import RTN
from thrifty.weights.preset.wanda import Wanda
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM


@pytest.fixture
def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 64, generator=generator) @ torch.randn(64, 64, generator=generator)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(24, 64, generator=torch.Generator().manual_seed(1))


def test_the_example_of_the_package(inputs: torch.Tensor, weight: torch.Tensor) -> None:
    gram = inputs.T @ inputs / len(inputs)
    solution = compress_weight(weight, GPTQ(bits=4, group_size=32), gram)
    rounded = compress_weight(weight, RTN(bits=4, group_size=32))
    codes, scale = solution.encoded.tensors["codes"], solution.encoded.tensors["scale"]
    assert codes.min() >= -8 and codes.max() <= 7 and scale.shape == (24, 2)
    assert torch.equal(solution.values, codes * scale.repeat_interleave(32, dim=1))
    loss, naive = ((((weight - found.values) @ inputs.T) ** 2).sum() / len(inputs) for found in (solution, rounded))
    assert solution.loss == pytest.approx(float(loss), rel=1e-3) and loss < 0.7 * naive


@pytest.mark.parametrize("method", [GPTQ(), Wanda(), Treatment(AWP(), NM(2, 4)), Treatment(OBS(), Int(3, 0, False), BAQ())])
def test_every_kind_of_method_keeps_its_word(method: object, inputs: torch.Tensor, weight: torch.Tensor) -> None:
    kept = weight.clone()
    solution = compress_weight(weight, method, inputs.T @ inputs / len(inputs))  # type: ignore[arg-type]
    assert torch.equal(weight, kept) and torch.equal(solution.values, solution.encoded.decode())
    assert 0 < solution.loss < float(((weight @ inputs.T) ** 2).sum() / len(inputs))


@pytest.mark.parametrize("method", [GPTQ(), RTN(), Wanda(), Treatment(AWP(), NM(2, 4))], ids=str)
def test_the_weight_of_a_layer_is_taken_as_it_is(method: object, inputs: torch.Tensor, weight: torch.Tensor) -> None:
    layer = torch.nn.Linear(64, 24)
    layer.weight.data = weight
    gram = (inputs.T @ inputs / len(inputs)).requires_grad_()
    solution = compress_weight(layer.weight, method, gram)  # type: ignore[arg-type]
    assert torch.equal(solution.values, compress_weight(weight, method, gram.detach()).values)  # type: ignore[arg-type]
    assert not solution.values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_type_is_taken(dtype: torch.dtype, weight: torch.Tensor) -> None:
    solution = compress_weight(weight.to(dtype), RTN())
    assert solution.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(solution.values, compress_weight(weight.to(dtype).float(), RTN()).values.to(solution.values.dtype))


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (lambda w, g: (w[0], GPTQ(), g), "float tensor"),
        (lambda w, g: (w.to(torch.int32), GPTQ(), g), "float tensor"),
        (lambda w, g: (w[:0], RTN(), None), "float tensor"),
        (lambda w, g: (w, GPTQ(), None), "give gram"),
        (lambda w, g: (w, GPTQ(), g[:32, :32]), "gram must be"),
        (lambda w, g: (w, GPTQ(group_size=48), g), "group_size"),
        (lambda w, g: (w * torch.inf, RTN(), None), "weight holds numbers that are not finite"),
        (lambda w, g: (w, GPTQ(), g * torch.nan), "gram holds numbers that are not finite"),
        (lambda w, g: (w, GPTQ(), w @ torch.ones(64, 64)), "gram must be"),
        (lambda w, g: (w, GPTQ(), torch.randn(64, 64)), "no mean of x x"),
        (lambda w, g: (w, Wanda(), -g), "no mean of x x"),
        (lambda w, g: (w.numpy(), GPTQ(), g), "got ndarray"),
        (lambda w, g: (w, GPTQ(), g.to(torch.complex64)), "gram must be a float tensor"),
        (lambda w, g: (w, "gptq", g), "must be a preset"),
        (lambda w, g: (w, GPTQ, g), "must be a preset"),
        (lambda w, g: (w, OBS(), g), "must be a preset"),
        (lambda w, g: (w, Treatment(NM(), AWP()), g), "is no solver"),
        (lambda w, g: (w, Treatment(AWP, NM()), g), "is no solver"),
        (lambda w, g: (w, Treatment(AWP(), NM), g), "is no target"),
    ],
)
def test_what_cannot_be_right_is_refused(broken, word: str, inputs: torch.Tensor, weight: torch.Tensor) -> None:
    with pytest.raises(InputError, match=word):
        compress_weight(*broken(weight, inputs.T @ inputs / len(inputs)))
