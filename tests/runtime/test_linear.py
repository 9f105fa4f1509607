"""Packed layers against the codes decoded in float64: each way from codes to outputs within the error of its own arithmetic."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.export.codes import encoded, shifted
from tests.runtime.kernels import needs_kernels
from thrifty.base.errors import RunError
from thrifty.base.records import Encoded
from thrifty.core.activations import Rounding
from thrifty.core.reading import Reading
from thrifty.runtime.container import packable
from thrifty.runtime.linear import FEW_TOKENS, PIECES, PackedLinear

BF16 = 2.0**-8
"""Largest relative error of rounding to bfloat16 (8 significant bits)."""
F16 = 2.0**-11
"""The same for float16 (11 significant bits)."""

KERNEL_SHAPES = [
    (16, 32, 32), (32, 64, 32), (48, 160, 32), (64, 256, 64), (32, 384, 128), (16, 512, 256), (64, 128, 0), (272, 1056, 32),
]  # fmt: skip
"""(out, in, group size) that the kernels take: 0 is the whole row."""


def matrix(out: int, width: int, group_size: int, bits: int = 4, symmetric: bool = True, seed: int = 0) -> Encoded:
    return encoded(seed, out, width, group_size, bits, symmetric, octaves=(-8.0, -5.0))


def tokens(count: int, width: int, dtype: torch.dtype = torch.bfloat16, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return (torch.randn(count, width, generator=generator) + mean).to(dtype)


def layer_of(code: Encoded, dtype: torch.dtype = torch.bfloat16, bias: Tensor | None = None, fine: bool = False) -> PackedLinear:
    layer = PackedLinear(code, bias=bias is not None, dtype=dtype, fine=fine)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return layer


def exact(inputs: Tensor, code: Encoded) -> Tensor:
    return inputs.double() @ code.decode().double().T


def magnitude(inputs: Tensor, weight: Tensor) -> Tensor:
    """Sums of the magnitudes of all products: what errors of single factors are relative to."""
    return inputs.double().abs() @ weight.double().abs().T


# -- few tokens: the 4-bit kernel --------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
@pytest.mark.parametrize("count", [1, FEW_TOKENS])
def test_few_tokens(count: int, shape: tuple[int, int, int], symmetric: bool) -> None:
    """The kernel rounds the value of code 8, every weight, and the output to bfloat16, and adds up in float32."""
    code = matrix(*shape, symmetric=symmetric)
    layer = layer_of(code)
    assert layer.kernel
    inputs = tokens(count, shape[1])
    found, expected = layer(inputs), exact(inputs, code)
    assert found.dtype == torch.bfloat16
    error = (found.double() - expected).abs()
    bound = BF16 * magnitude(inputs, code.decode()) + 1.01 * BF16 * expected.abs()
    if not symmetric:
        offset = (code.tensors["zero_point"] * code.tensors["scale"]).repeat_interleave(code.group_size or shape[1], 1)
        bound += 2 * BF16 * magnitude(inputs, offset)
    assert (error <= bound).all()
    # Roundings are independent, so their sum is far below the sum of their bounds.
    assert error.norm() < BF16 * expected.norm()


@needs_kernels
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
@pytest.mark.parametrize("count", [1, FEW_TOKENS, FEW_TOKENS + 1, 33])
@pytest.mark.parametrize("bits", [4, 2])
def test_codes_that_need_not_meet_zero_take_the_same_ways(bits: int, count: int, shape: tuple[int, int, int]) -> None:
    """bfloat16 holds their scales and offsets, so only weights and the output are rounded for few tokens."""
    code = packable(shifted(1, *shape, bits, middle=0.5))
    assert code is not None
    layer, decoded = layer_of(code), layer_of(code, torch.float32)
    assert layer.kernel and not decoded.kernel
    inputs = tokens(count, shape[1])
    expected = exact(inputs, code)
    error = (layer(inputs).double() - expected).norm() / expected.norm()
    assert error < (BF16 if count <= FEW_TOKENS else 4 * BF16)
    torch.testing.assert_close(decoded(inputs.float()).double(), expected, rtol=1e-5, atol=1e-4)


def test_codes_of_8_bits_that_need_not_meet_zero_are_decoded() -> None:
    code = shifted(2, 32, 64, 0, 8)
    layer = layer_of(code)
    assert not layer.kernel
    inputs = tokens(3, 64)
    assert torch.equal(layer(inputs), inputs @ code.decode().to(torch.bfloat16).T)


# -- many tokens: 8-bit products ---------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("mean", [0.0, 40.0])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
@pytest.mark.parametrize("count", [FEW_TOKENS + 1, 33])
def test_many_tokens(count: int, shape: tuple[int, int, int], symmetric: bool, mean: float, fine: bool) -> None:
    """A weight is off by half of 1/127 of its row's largest (fine: 1/254 of that), an input by half of 1/255 of its token's range."""
    code = matrix(*shape, symmetric=symmetric)
    layer = layer_of(code, fine=fine)
    assert layer.kernel
    inputs = tokens(count, shape[1], mean=mean)
    found, expected = layer(inputs), exact(inputs, code)
    assert found.dtype == torch.bfloat16
    error = (found.double() - expected).abs()
    weight, values = code.decode().double(), inputs.double()
    weight_step = weight.abs().amax(1) / 127 / (PIECES if fine else 1)
    input_step = (values.amax(1) - values.amin(1)) / 255
    row, token = (weight.abs() + weight_step[:, None] / 2).sum(1), values.abs().sum(1)
    bound = token[:, None] * weight_step / 2 + input_step[:, None] / 2 * row
    assert (error <= 1.01 * bound + 1.01 * BF16 * expected.abs()).all()
    # Rounding errors are spread evenly over a step, so their variance is a twelfth of its square.
    variance = values.square().sum(1)[:, None] * weight_step.square() / 12 + input_step.square()[:, None] * weight.square().sum(1) / 12
    likely = (variance + (BF16 * expected).square() / 3).sum().sqrt()
    # Tokens with one mean share the error of a row, which leaves fewer draws and more room.
    assert error.norm() < (2.5 if mean else 1.5) * likely


@needs_kernels
@pytest.mark.parametrize("mean", [0.0, 40.0])
@pytest.mark.parametrize("count", [1, FEW_TOKENS, FEW_TOKENS + 1, 33])
@pytest.mark.parametrize("shape", [(5, 24), (16, 32), (17, 100), (64, 384)])
def test_weights_of_8_bits_with_one_scale_a_row(shape: tuple[int, int], count: int, mean: float) -> None:
    """The codes are multiplied as they are: nothing is rounded but inputs, by half of 1/255 of their token's range, and the output."""
    code = matrix(*shape, 0, 8)
    code.tensors["codes"][0], code.tensors["codes"][1] = -128, 127
    layer = layer_of(code)
    assert layer.kernel
    inputs = tokens(count, shape[1], mean=mean)
    found, expected = layer(inputs), exact(inputs, code)
    weight, values = code.decode().double(), inputs.double()
    step = (values.amax(1) - values.amin(1)) / 255
    bound = step[:, None] / 2 * weight.abs().sum(1) + BF16 * expected.abs()
    assert ((found.double() - expected).abs() <= 1.01 * bound).all()
    # Codes as inputs leave nothing to round.
    whole = torch.cat([torch.tensor([-127.0, 128.0]), torch.arange(shape[1] - 2.0) % 100 - 10]).expand(count, -1).to(torch.bfloat16)
    assert torch.equal(layer(whole), exact(whole, code).to(torch.bfloat16))


@needs_kernels
@pytest.mark.parametrize("tokens_with_outliers", [[0], [3], [1, 2], list(range(9))], ids=len)
def test_tokens_with_outliers_are_rounded_to_twice_as_many_bits(tokens_with_outliers: list[int]) -> None:
    """Weights of 8 bits, so that nothing else is rounded: a step over the whole range would lose all that is not an outlier."""
    code = matrix(32, 256, 0, 8)
    layer = layer_of(code)
    inputs = tokens(9, 256)
    plain = layer(inputs)
    inputs[tokens_with_outliers, 7], inputs[tokens_with_outliers, 90] = 300.0, -200.0
    found, expected = layer(inputs), exact(inputs, code)
    step = (inputs.amax(1) - inputs.amin(1))[:, None].double() / 255
    bound = step / 254 / 2 * code.decode().double().abs().sum(1)
    outliers = torch.zeros(9, dtype=torch.bool).index_fill(0, torch.tensor(tokens_with_outliers), True)
    assert ((found.double() - expected).abs() <= 1.01 * bound + 1.01 * BF16 * expected.abs())[outliers].all()
    assert torch.equal(found[~outliers], plain[~outliers])  # no token changes what another one gives


@needs_kernels
def test_products_of_bytes_have_a_kernel_here() -> None:
    """Where a processor has no kernel for a pair of types, the library computes number by number, thousands of times slower."""
    code = matrix(512, 1024, 32)
    ways = ((layer_of(code), tokens(128, 1024)), (layer_of(code, torch.float32), tokens(128, 1024).float()))
    assert [layer.kernel for layer, _ in ways] == [True, False]
    fast, plain = (min(seconds(layer, inputs) for _ in range(5)) for layer, inputs in ways)
    assert fast < 10 * plain


def seconds(layer: PackedLinear, inputs: Tensor) -> float:
    start = time.perf_counter()
    layer(inputs)
    return time.perf_counter() - start


def test_many_tokens_that_are_constant_or_zero() -> None:
    code = matrix(32, 64, 32)
    code.tensors["codes"][3] = 0
    layer = layer_of(code, bias=torch.arange(32.0))
    inputs = torch.zeros(FEW_TOKENS + 4, 64, dtype=torch.bfloat16)
    inputs[1], inputs[2], inputs[3, 5] = 7.0, -1e-3, 1000.0
    found = layer(inputs).double() - torch.arange(32.0)
    assert (found[0] == 0).all() and (found[4:] == 0).all()
    assert (found[:, 3] == 0).all()
    expected = exact(inputs, code)
    weight_step = code.decode().double().abs().amax(1) / 127
    assert ((found[1] - expected[1]).abs() <= 7 * 64 * weight_step / 2 + 2 * BF16 * (expected[1].abs() + 32)).all()
    assert ((found[2] - expected[2]).abs() <= 1e-3 * 64 * weight_step + 2 * BF16 * 32).all()
    alone = (found[3] - expected[3]).abs()
    assert (alone <= 1000 * weight_step / 2 + 1000 / 255 / 2 * (code.decode().abs().sum(1) + 1) + 2 * BF16 * (expected[3].abs() + 32)).all()


def test_a_token_that_is_not_finite_spoils_no_other() -> None:
    layer = layer_of(matrix(32, 64, 32))
    inputs = tokens(FEW_TOKENS + 2, 64)
    spoiled = inputs.clone()
    spoiled[1, 3] = torch.nan
    found = layer(spoiled)
    assert found[1].isnan().all()
    others = [0, *range(2, FEW_TOKENS + 2)]
    assert torch.equal(found[others], layer(inputs)[others])


# -- elsewhere: decoding -----------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**31),
    out=st.integers(1, 20),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 24),
    whole=st.booleans(),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    count=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_any_other_shape_is_decoded(
    seed: int, out: int, groups: int, group_size: int, whole: bool, bits: int, symmetric: bool, count: int, dtype: torch.dtype
) -> None:
    width = groups * group_size
    code = matrix(out, width, 0 if whole else group_size, bits, symmetric, seed)
    layer = layer_of(code, dtype)
    assume(not layer.kernel)
    assert torch.equal(layer._decode(), code.decode())
    inputs = tokens(count, width, dtype)
    found, expected = layer(inputs), exact(inputs, code)
    assert found.dtype == dtype
    # Weights and outputs are rounded once to the type; sums are at worst as bad as adding up one after the other in float32.
    once = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.float16: F16, torch.bfloat16: BF16}[dtype]
    sums = width * (2.0**-53 if dtype == torch.float64 else 2.0**-24)
    smallest = torch.finfo(dtype).tiny * width
    bound = (once + sums) * magnitude(inputs, code.decode()) + 1.01 * once * expected.abs() + smallest
    assert ((found.double() - expected).abs() <= 1.01 * bound).all()


@pytest.mark.parametrize(
    ("shape", "bits", "dtype"),
    [
        ((15, 64, 32), 4, torch.bfloat16),  # 16 rows at a time
        ((32, 64, 16), 4, torch.bfloat16),  # groups of 32 at least
        ((32, 96, 0), 4, torch.bfloat16),  # a whole row of an odd width
        ((32, 64, 32), 8, torch.bfloat16),
        ((32, 64, 32), 4, torch.float32),
        ((32, 64, 32), 4, torch.float16),
    ],
)
def test_what_the_kernels_do_not_take(shape: tuple[int, int, int], bits: int, dtype: torch.dtype) -> None:
    code = matrix(*shape, bits=bits)
    layer = layer_of(code, dtype)
    assert not layer.kernel
    inputs = tokens(12, shape[1], dtype)
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, code.decode().to(dtype)))


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [(), (1,), (3, 2), (2, 3, 4), (0,), (3, 0)])
def test_inputs_of_any_rank(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    code = matrix(32, 64, 32, symmetric=False)
    bias = torch.linspace(-1, 1, 32).to(dtype)
    layer = layer_of(code, dtype, bias)
    inputs = torch.randn(*batch, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = layer(inputs)
    assert found.shape == (*batch, 32) and found.dtype == dtype
    assert torch.equal(found.reshape(-1, 32), layer(inputs.reshape(-1, 64)))
    assert torch.equal(found, layer_of(code, dtype)(inputs) + bias)


@pytest.mark.parametrize("count", [3, 20])
def test_inputs_that_lie_apart_in_memory(count: int) -> None:
    layer = layer_of(matrix(32, 64, 32))
    wide = tokens(count, 128)
    for inputs in (wide[:, ::2], wide[:, 64:], tokens(64, count).T):
        assert not inputs.is_contiguous()
        assert torch.equal(layer(inputs), layer(inputs.contiguous()))


# -- what is held ------------------------------------------------------------------------------------------------------


def bytes_of(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_stay_codes(bits: int, symmetric: bool) -> None:
    out, width, group_size = 256, 512, 64
    layer = layer_of(matrix(out, width, group_size, bits, symmetric), torch.float32)
    layer(tokens(3, width, torch.float32))
    groups = out * width // group_size
    assert bytes_of(layer) == out * width * bits // 8 + groups * (4 if symmetric else 5)
    # Nothing is held beside the tensors that are counted.
    assert len(pickle.dumps(layer)) < bytes_of(layer) + 8_000


@needs_kernels
def test_the_kernels_hold_a_code_of_4_and_one_of_8_bits() -> None:
    out, width, group_size = 256, 512, 64
    layer = layer_of(matrix(out, width, group_size))
    for count in (1, 20):
        layer(tokens(count, width))
    groups = out * width // group_size
    assert bytes_of(layer) == out * width * 3 // 2 + groups * 4 + out * 12
    assert not [name for name, tensor in layer.named_buffers() if tensor.is_floating_point() and tensor.numel() > 2 * groups]
    held = {name for name, value in vars(layer).items() if isinstance(value, Tensor | Encoded)}
    assert not held


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_types_asked_of_the_model_change_no_code(dtype: torch.dtype) -> None:
    code = matrix(32, 64, 32, symmetric=False)
    layer = layer_of(code, dtype, torch.arange(32) / 32)
    first = {name: tensor.dtype for name, tensor in layer.named_buffers()}
    expected = {count: layer(tokens(count, 64, dtype)) for count in (2, 20)}
    for other in (torch.float16, torch.float64, torch.float32):
        layer.to(other)
        assert layer.bias is not None and layer.bias.dtype == other
        assert {name: tensor.dtype for name, tensor in layer.named_buffers()} == first
        for count, values in expected.items():
            found = layer(tokens(count, 64, dtype).to(other))
            assert found.dtype == other
            torch.testing.assert_close(found.double(), values.double(), rtol=2**-7, atol=2**-7)
    layer.to(dtype)
    assert all(torch.equal(layer(tokens(count, 64, dtype)), values) for count, values in expected.items())


@needs_kernels
def test_the_kernels_stay_on_the_processor() -> None:
    layer = layer_of(matrix(32, 64, 32))
    with pytest.raises(RunError, match="processor only"):
        layer.to("meta")
    assert layer(tokens(2, 64)).isfinite().all()
    moved = layer_of(matrix(32, 64, 32), torch.float32).to("meta")
    assert {tensor.device.type for tensor in moved.buffers()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_copies(dtype: torch.dtype) -> None:
    layer = layer_of(matrix(32, 64, 32), dtype, torch.linspace(-1, 1, 32))
    twin = copy.deepcopy(nn.Sequential(layer, nn.Identity()))
    for count in (2, 20):
        inputs = tokens(count, 64, dtype)
        assert torch.equal(twin(inputs), layer(inputs))
    twin[0].bias.zero_()
    assert layer.bias is not None and layer.bias.abs().sum() > 0
    assert {id(tensor) for tensor in twin.buffers()} == {id(tensor) for tensor in layer.buffers()}


@needs_kernels
def test_pickles() -> None:
    plain = layer_of(matrix(32, 64, 32, 8, symmetric=False), torch.float32, torch.linspace(-1, 1, 32))
    inputs = tokens(4, 64, torch.float32)
    assert torch.equal(pickle.loads(pickle.dumps(plain))(inputs), plain(inputs))
    # The kernels' layout is that of the processor at hand: on another one the file would be read wrongly.
    with pytest.raises(RunError, match="cannot be pickled"):
        pickle.dumps(layer_of(matrix(32, 64, 32)))


def test_what_it_says_of_itself() -> None:
    assert repr(layer_of(matrix(32, 64, 0))) == "PackedLinear(in_features=64, out_features=32, bits=4, group_size=64)"


ROUNDINGS = {
    "token": Rounding(8, "token", True),
    "asymmetric": Rounding(8, "token", False),
    "fixed": Rounding(8, "tensor", False, torch.tensor([0.03]), torch.tensor([-20.0])),
    "six bits": Rounding(6, "token", True),
}


@needs_kernels
@pytest.mark.parametrize("count", [1, FEW_TOKENS + 1, 33])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_inputs_are_rounded_first(name: str, bits: int, count: int) -> None:
    """In float32 to the last bits, in bfloat16 but for its own type; weights of 4 bits are rounded to 8 for many tokens, too."""
    rounding, code = ROUNDINGS[name], matrix(64, 256, 0 if bits == 8 else 64, bits)
    inputs = tokens(count, 256, mean=0.5)
    expected = exact(rounding(inputs.float()), code)
    plain = PackedLinear(code, bias=False, dtype=torch.float32, reading=Reading(rounding=rounding))
    torch.testing.assert_close(plain(inputs.float()).double(), expected, rtol=1e-5, atol=1e-4)
    layer = PackedLinear(code, bias=False, dtype=torch.bfloat16, reading=Reading(rounding=rounding))
    assert layer.kernel
    error = (layer(inputs).double() - expected).norm() / expected.norm()
    assert error < (BF16 if bits == 8 and rounding.bits == 8 else 0.012)
    assert error < (exact(inputs, code) - expected).norm() / expected.norm() or bits == 4
