"""What rows bring to a block besides hidden states (time steps, labels, the embeddings of a text): it travels behind them.

The walk moves one tensor from block to block, and one call serves all rows. So what an anatomy says that a block `carries` is written
behind the hidden states [rows, length, width] of its row: flattened, filled up with zeros to whole tokens. `run_block` takes it apart
again, and puts back what the block changed. Whole numbers are written as three digits in base 256, over 256, which bfloat16 and float16
hold exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.errors import RunError

_BASE, _DIGITS = 256, 3


@dataclass(frozen=True)
class Part:
    """One carried argument: its name, the shape that it has for one row, and its type where it holds whole numbers."""

    name: str
    shape: tuple[int, ...]
    whole: torch.dtype | None

    @property
    def numbers(self) -> int:
        """How many floats it takes."""
        return prod(self.shape) * (_DIGITS if self.whole else 1)

    def write(self, values: Tensor, dtype: torch.dtype) -> Float[Tensor, "rows numbers"]:
        """The values of all rows as floats."""
        flat = values.reshape(values.shape[0], -1)
        if self.whole is None:
            return flat.to(dtype)
        digits = [flat // _BASE**place % _BASE for place in range(_DIGITS)]
        return (torch.cat(digits, dim=1) / _BASE).to(dtype)

    def read(self, numbers: Float[Tensor, "rows numbers"]) -> Tensor:
        """What `write` wrote."""
        rows = numbers.shape[0]
        if self.whole is not None:
            digits = (numbers.to(torch.float32) * _BASE).round().to(self.whole).reshape(rows, _DIGITS, -1)
            numbers = sum(digits[:, place] * _BASE**place for place in range(_DIGITS))
        return numbers.reshape(rows, *self.shape)


@dataclass(frozen=True)
class Carried:
    """Where it lies. length: tokens of hidden states before it. returns: what the block puts out, in order; nothing for hidden states
    alone. hidden: the name that these have there."""

    length: int
    parts: tuple[Part, ...]
    returns: tuple[str, ...]
    hidden: str

    @classmethod
    def of(cls, hidden: Float[Tensor, "rows length width"], values: Mapping[str, Tensor], returns: tuple[str, ...], name: str) -> Carried:
        """How these values lie behind these hidden states. Raises RunError for those that are not one for each row, or cannot be held."""
        for argument, tensor in values.items():
            if tensor.ndim == 0 or tensor.shape[0] != hidden.shape[0]:
                raise RunError(f"{argument} has the shape {list(tensor.shape)}; give it for each of the {hidden.shape[0]} rows")
            held = tensor.is_meta or tensor.is_floating_point() or not tensor.numel() or 0 <= tensor.min() <= tensor.max() < _BASE**_DIGITS
            if not held:
                raise RunError(f"{argument} holds whole numbers below 0 or of {_BASE**_DIGITS:,} and more, which blocks are not given here")
        parts = [
            Part(argument, tuple(tensor.shape[1:]), None if tensor.is_floating_point() else tensor.dtype)
            for argument, tensor in values.items()
        ]
        return cls(hidden.shape[1], tuple(parts), returns, name)

    def pack(self, hidden: Float[Tensor, "rows length width"], values: Mapping[str, Tensor]) -> Float[Tensor, "rows longer width"]:
        """Hidden states with everything that is carried behind them."""
        rows, _, width = hidden.shape
        found = [hidden]
        for part in self.parts:
            numbers = part.write(values[part.name].to(hidden.device), hidden.dtype)
            filled = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % width))
            found.append(filled.reshape(rows, -1, width))
        return torch.cat(found, dim=1)

    def unpack(self, packed: Float[Tensor, "rows longer width"]) -> tuple[Float[Tensor, "rows length width"], dict[str, Tensor]]:
        """(the hidden states, what lies behind them by argument)."""
        rows, _, width = packed.shape
        values, start = {}, self.length
        for part in self.parts:
            stop = start - (-part.numbers // width)
            values[part.name] = part.read(packed[:, start:stop].reshape(rows, -1)[:, : part.numbers])
            start = stop
        return packed[:, : self.length], values

    def after(self, out: Any, values: Mapping[str, Tensor]) -> Float[Tensor, "rows longer width"]:
        """What leaves a block with everything behind it; values: what the block was given."""
        changed = dict(zip(self.returns, out, strict=True)) if self.returns else {self.hidden: out}
        hidden = changed.pop(self.hidden)
        return self.pack(hidden, {**values, **changed})

    def put_out(self, packed: Float[Tensor, "rows longer width"]) -> Any:
        """What a block puts out whose rows leave it as `packed`."""
        hidden, values = self.unpack(packed)
        return tuple({**values, self.hidden: hidden}[name] for name in self.returns) if self.returns else hidden

    def blank(self, packed: Float[Tensor, "rows longer width"]) -> Float[Tensor, "rows longer width"]:
        """Random hidden states with zeros behind them, which are right for every argument."""
        return torch.cat([packed[:, : self.length], torch.zeros_like(packed[:, self.length :])], dim=1)
