"""A linear layer whose weights stay codes in memory.

Three ways lead from codes to outputs, and the number of tokens decides which one is taken:

    few tokens    torch's 4-bit kernel: reads the codes alone, so it is bound by a quarter of the memory traffic
    many tokens   8-bit products: inputs are rounded to 8 bits token by token, each between its own smallest and largest value, weights
                  once to 8 bits row by row (held beside the codes). Tokens whose outliers would make that too coarse are multiplied
                  twice, what rounding left in a second piece; so are the weights of matrices that are asked for `fine`. Weights of 8 bits
                  with one scale a row are taken as they are, and this way for few tokens, too. Where a result asks for inputs of 8
                  bits, their codes are what is multiplied
    elsewhere     the codes are decoded for the call: exact, in whatever type the inputs have

The first two need a processor that multiplies bytes exactly, bfloat16 and shapes that the kernels take. Decoding is their tested twin.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, Self

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional

from thrifty.base.errors import RunError
from thrifty.base.records import Encoded
from thrifty.core.packing import pack_words, unpack_words
from thrifty.core.reading import AS_THEY_ARE, Reading
from thrifty.core.token_bytes import PIECES, SMALLEST, free_bytes, grid_bytes

FEW_TOKENS = 4
"""Up to so many tokens at once the 4-bit kernel is the fastest (see `bench/linear_kernels.py`)."""

FINE_ROLES = frozenset({"v", "qkv", "o"})
"""What is loaded `fine`: attention averages its values over tokens, which averages out how their inputs were rounded, but not how their
weights were. On a random model those few weights cost as much as all others together."""

KERNEL_GROUPS = (32, 64, 128, 256)
KERNEL_ROWS = 16
INNER_TILES = 2


class PackedLinear(nn.Module):
    """A linear layer [out, in] that holds codes and scales.

    encoded: layout `int` or `affine` in 4 or 8 bits, or `numbers` in up to 8. bias: whether there is one. dtype: what the model computes
    in. fine: whether weights of 4 bits keep, for many tokens, 16 bits instead of 8: a byte more a weight, and twice the time. reading: what
    the layer does to its inputs, whose matrix is that of turned ones where it turns them.

    Outputs have the type of the inputs. Codes and scales keep the types they were made with, whatever `to(dtype)` asks of the model; where
    the kernels hold them they stay on the processor, in its own layout: copies share them, and they cannot be pickled.
    """

    def __init__(self, encoded: Encoded, *, bias: bool, dtype: torch.dtype, fine: bool = False, reading: Reading = AS_THEY_ARE) -> None:
        super().__init__()
        self.reading, self.rounding = reading, reading.rounding
        self.rounds_to_bytes = self.rounding is not None and self.rounding.bits == 8 and self.rounding.counts
        self.out_features, self.in_features = encoded.shape
        self.bits, self.layout = int(encoded.bits), encoded.layout
        self.group_size = encoded.group_size or self.in_features
        self.bias = nn.Parameter(torch.empty(self.out_features, dtype=dtype, device="meta"), requires_grad=False) if bias else None
        self.kernel = dtype == torch.bfloat16 and kernel_takes(encoded)
        for name, tensor in (kernel_form(encoded, fine) if self.kernel else plain_form(encoded)).items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """inputs @ weight.T + bias."""
        rows = self.reading.turned(inputs.reshape(-1, self.in_features))
        few = self.bits == 4 and rows.shape[0] <= FEW_TOKENS
        if self.rounding is not None and (not self.kernel or few or not self.rounds_to_bytes):
            rows = self.rounding(rows)
        if not self.kernel:
            out = functional.linear(rows, self._decode().to(rows.dtype))
        elif few:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows.to(torch.bfloat16).contiguous(), self.codes, self.group_size, self.scale)
        else:
            out = self._many(rows)
        out = out if self.bias is None else out + self.bias
        return out.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)

    def lay_flat(self) -> None:
        """Hold codes of 8 bits as they lie in files, and put them into the kernel's layout anew for every call: a layer on disk does."""
        if "wide_codes" in self._buffers:
            self.wide_codes = self.wide_codes.to_dense().T.contiguous()

    def _decode(self) -> Float[Tensor, "out in"]:
        """The matrix that the codes stand for, float32; only where the kernels do not hold it in a layout of their own."""
        tensors = {**self._buffers, "codes": unpack_words(self.codes, self.bits, self.in_features)}
        if self.layout == "numbers":
            tensors["codes"] = tensors["codes"].to(torch.int32) + 2 ** (self.bits - 1)
        return Encoded(self.layout, tensors, (self.out_features, self.in_features), float(self.bits), self.group_size).decode()

    def _many(self, rows: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        if self.rounding is not None and self.rounds_to_bytes:
            step, zero_point = self.rounding.grid(rows.to(torch.float32))
            out, low = self._products(grid_bytes(rows, step, zero_point))[: len(rows)], (-128 - zero_point) * step
        else:
            codes, step, low, coarse = free_bytes(rows)
            products = self._products(codes)
            out = products[: len(rows)]
            if coarse is not None:
                rest = products[len(rows) : len(rows) + len(coarse)].div_(PIECES).sub_(self.wide_sum, alpha=0.5)
                out = out + rest if len(coarse) == len(rows) else out.index_add_(0, coarse, rest)
        # every input stands `low` above its code, so every output lacks that many times the sum of its row of weights
        return out.mul_(step).addcmul_(low, self.wide_sum).to(torch.bfloat16)

    def _products(self, codes: UInt8[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """Bytes times the weights, in one product where these have two pieces."""
        weight = self.wide_codes if self.wide_codes.is_mkldnn else torch.ops.onednn.qlinear_prepack(self.wide_codes, None)
        out = byte_products(codes, weight, self.wide_scale, self.wide_zero)
        return out if out.shape[1] == self.out_features else out[:, : self.out_features] + out[:, self.out_features :]

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `float`, `cuda` and the like do: the bias follows, codes and scales change their place and never their type."""
        held = self._buffers
        device = function(next(iter(held.values()))).device
        if self.kernel and device.type != "cpu":
            raise RunError(f"packed weights in bfloat16 run on the processor only, not on {device}; load with dtype=torch.float32 for that")
        self._buffers = {}
        try:
            super()._apply(function, recurse)
        finally:
            self._buffers = held if self.kernel else {name: tensor.to(device) for name, tensor in held.items()}
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo.update({id(tensor): tensor for tensor in self._buffers.values()})  # never written to, so one is enough
        made = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__dict__, memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        if self.kernel:
            raise RunError("packed weights lie in memory as this processor reads them and cannot be pickled; copy the model's folder")
        return dict(self.__dict__)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group_size={self.group_size}"


def kernel_takes(encoded: Encoded) -> bool:
    """Whether torch's kernels for processors can hold this matrix."""
    out_features, in_features = encoded.shape
    group_size = encoded.group_size or in_features
    if encoded.layout == "numbers" or not multiplies_bytes():
        return False
    if encoded.bits == 8:
        return group_size == in_features and not encoded.tensors.keys() & {"zero_point", "offset"}
    return (
        encoded.bits == 4
        and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        and group_size in KERNEL_GROUPS
        and in_features % group_size == 0
        and out_features % KERNEL_ROWS == 0
    )


@cache
def multiplies_bytes() -> bool:
    """Whether this processor multiplies bytes without loss: those without instructions for it add pairs of products up in 16 bits."""
    if not torch.backends.mkldnn.is_available():
        return False
    inputs = torch.full((2, KERNEL_ROWS), 255, dtype=torch.uint8)
    form = wide_form(torch.full((KERNEL_ROWS, KERNEL_ROWS), 127, dtype=torch.int8), torch.ones(KERNEL_ROWS))
    try:
        found = byte_products(inputs, form["wide_codes"], form["wide_scale"], form["wide_zero"])
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool((found == 255 * 127 * KERNEL_ROWS).all())


def byte_products(
    codes: UInt8[Tensor, "tokens in"], weight: Tensor, scale: Float[Tensor, "out"], zero: Tensor
) -> Float[Tensor, "tokens out"]:
    """codes @ weight.T * scale, with integer sums. weight: as `wide_form` has it. Signed codes have no fast kernel on most processors."""
    return torch.ops.onednn.qlinear_pointwise(codes, 1.0, 0, weight, scale, zero, None, 1.0, 0, torch.float32, "none", [], "")


def plain_form(encoded: Encoded) -> dict[str, Tensor]:
    """Codes in words, and the scales and zero points as they are. Words hold signed codes: those that count from 0 are moved."""
    codes, bits = encoded.tensors["codes"], int(encoded.bits)
    rest = {name: tensor for name, tensor in encoded.tensors.items() if name != "codes"}
    return {"codes": pack_words(codes.to(torch.int32) - 2 ** (bits - 1) if encoded.layout == "numbers" else codes, bits), **rest}


def kernel_form(encoded: Encoded, fine: bool = False) -> dict[str, Tensor]:
    """What the kernels read: codes of 8 bits as they are, those of 4 bits twice, for few tokens and for many.

    The 4-bit kernel counts codes from 0 and takes [groups, out, 2]: the scale, and the value that code 8 stands for. fine: what rounding to
    8 bits leaves is held, too.
    """
    codes, scale = encoded.tensors["codes"], encoded.tensors["scale"]
    if encoded.bits == 8:
        return wide_form(codes.to(torch.int8), scale.reshape(-1).to(torch.float32))
    zero_point, offset = (encoded.tensors.get(name) for name in ("zero_point", "offset"))
    if offset is None:
        offset = torch.zeros_like(scale) if zero_point is None else -zero_point.to(torch.float32) * scale
    weight = encoded.decode()
    return {
        "codes": torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32) + 8, INNER_TILES),
        "scale": torch.stack([scale.T, offset.T], dim=-1).to(torch.bfloat16).contiguous(),
        **_wide(weight, fine),
    }


def _wide(weight: Float[Tensor, "out in"], fine: bool) -> dict[str, Tensor]:
    """The weights rounded to 8 bits, row by row; fine: and below them what that leaves, in steps of 1/PIECES."""
    scale = weight.abs().amax(1).clamp_min(SMALLEST) / 127
    steps = weight / scale[:, None]
    codes = torch.round(steps)
    if not fine:
        return wide_form(codes.to(torch.int8), scale)
    rest = torch.round((steps - codes) * PIECES)
    form = wide_form(torch.cat([codes, rest]).to(torch.int8), torch.cat([scale, scale / PIECES]))
    return {**form, "wide_sum": form["wide_sum"].view(2, -1).sum(0)}


def wide_form(codes: Int8[Tensor, "out in"], scale: Float[Tensor, "out"]) -> dict[str, Tensor]:
    """What the 8-bit kernel reads: codes in its own layout, a scale a row, and what a row of weights sums to."""
    return {
        "wide_codes": torch.ops.onednn.qlinear_prepack(codes, None),
        "wide_scale": scale,
        "wide_sum": codes.sum(1, dtype=torch.float32) * scale,
        "wide_zero": torch.zeros(codes.shape[0], dtype=torch.int32),
    }
