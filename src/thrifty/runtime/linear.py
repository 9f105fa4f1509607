"""A linear layer whose weights stay codes in memory.

Three ways lead from codes to outputs, and the number of tokens decides which one is taken:

    few tokens    torch's 4-bit kernel: reads the codes alone, so it is bound by a quarter of the memory traffic
    many tokens   8-bit products: inputs are rounded to 8 bits token by token, weights once to 8 bits by row (a second form, made when first needed)
    elsewhere     the codes are decoded for the call: exact, in whatever type the model computes in

The first two need a processor, bfloat16 and shapes that the kernels take. Decoding is their tested twin.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.base.records import Encoded
from thrifty.core.packing import pack_words, unpack_words

FEW_TOKENS = 8
"""Up to so many tokens at once the 4-bit kernel is the fastest (see `bench/kernels.py`)."""

KERNEL_GROUPS = (32, 64, 128, 256)
KERNEL_ROWS = 16
INNER_TILES = 2


class PackedLinear(nn.Module):
    """A linear layer [out, in] that holds codes and scales.

    encoded: layout `int`, 4 or 8 bits. bias: whether there is one. dtype: what the model computes in.
    """

    def __init__(self, encoded: Encoded, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = encoded.shape
        self.bits = int(encoded.bits)
        self.group_size = encoded.group_size or self.in_features
        self.bias = nn.Parameter(torch.empty(self.out_features, dtype=dtype, device="meta"), requires_grad=False) if bias else None
        self.kernel = dtype == torch.bfloat16 and kernel_takes(encoded)
        self._wide: tuple[Tensor, Tensor] | None = None
        scale, zero_point = encoded.tensors["scale"], encoded.tensors.get("zero_point")
        if self.kernel:
            held = {"codes": _kernel_codes(encoded.tensors["codes"]), "scale": _kernel_scales(scale, zero_point)}
        else:
            held = {"codes": pack_words(encoded.tensors["codes"], self.bits), "scale": scale}
            if zero_point is not None:
                held["zero_point"] = zero_point
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """inputs @ weight.T + bias."""
        rows = inputs.reshape(-1, self.in_features)
        if not self.kernel or rows.dtype != torch.bfloat16:
            out = functional.linear(rows, self.decode(rows.dtype))
        elif rows.shape[0] <= FEW_TOKENS:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.codes, self.group_size, self.scale)
        else:
            out = self._many(rows)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*inputs.shape[:-1], self.out_features)

    def decode(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The matrix that the codes stand for."""
        if self.kernel:
            # The kernel's layout is its own business: its product with the identity is the matrix, exact but for bfloat16.
            eye = torch.eye(self.in_features, dtype=torch.bfloat16)
            return torch.ops.aten._weight_int4pack_mm_for_cpu(eye, self.codes, self.group_size, self.scale).T.to(dtype)
        tensors = {"codes": unpack_words(self.codes, self.bits, self.in_features), "scale": self.scale}
        if hasattr(self, "zero_point"):
            tensors["zero_point"] = self.zero_point
        encoded = Encoded("int", tensors, (self.out_features, self.in_features), float(self.bits), self.group_size)
        return encoded.decode().to(dtype)

    def _many(self, rows: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        if self._wide is None:
            self._wide = wide_form(self.decode(torch.float32))
        weight, scale = self._wide
        step = rows.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        codes = torch.round(rows / step).to(torch.int8)
        none = torch.zeros(self.out_features, dtype=torch.int32)
        out = torch.ops.onednn.qlinear_pointwise(codes, 1.0, 0, weight, scale, none, None, 1.0, 0, torch.bfloat16, "none", [], "")
        return out * step

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group_size={self.group_size}"

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        # The 8-bit form is made by an operator whose tensors cannot be copied; a copy makes its own.
        made = object.__new__(type(self))
        memo[id(self)] = made
        nn.Module.__init__(made)
        made.__dict__.update({key: value for key, value in self.__dict__.items() if not key.startswith("_")})
        made._wide = None
        made._parameters = dict(self._parameters)
        made._buffers = dict(self._buffers)
        made._non_persistent_buffers_set = set(self._non_persistent_buffers_set)
        return made


def kernel_takes(encoded: Encoded) -> bool:
    """Whether torch's 4-bit kernel for processors can hold this matrix."""
    out_features, in_features = encoded.shape
    group_size = encoded.group_size or in_features
    return (
        encoded.bits == 4
        and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        and group_size in KERNEL_GROUPS
        and in_features % group_size == 0
        and out_features % KERNEL_ROWS == 0
    )


def _kernel_codes(codes: Tensor) -> Tensor:
    """Codes -8..7 in the layout of the kernel, which counts from 0."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32) + 8, INNER_TILES)


def _kernel_scales(scale: Float[Tensor, "out groups"], zero_point: Tensor | None) -> Tensor:
    """[groups, out, 2]: the scale and the value of code 0 of each group, bfloat16."""
    offset = torch.zeros_like(scale) if zero_point is None else -zero_point.to(torch.float32) * scale
    return torch.stack([scale.T, offset.T], dim=-1).to(torch.bfloat16).contiguous()


def wide_form(weight: Float[Tensor, "out in"]) -> tuple[Tensor, Float[Tensor, "out"]]:
    """(the matrix in 8 bits, prepared for the 8-bit product; the scale of each row)."""
    scale = weight.abs().amax(1).clamp_min(1e-8) / 127
    codes = torch.round(weight / scale[:, None]).to(torch.int8)
    return torch.ops.onednn.qlinear_prepack(codes, None), scale
