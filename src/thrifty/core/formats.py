"""Small number formats: the number that every code stands for, and the nearest number to a value.

A format of n bits is a table of 2^n numbers. Floats are those of the OCP formats (FP8 e4m3 and e5m2, FP6 e2m3 and e3m2, FP4 e2m1), posits
those of the 2022 standard with any `es`. Rounding takes the nearest number and of two as near the one with the even code, which for floats
is the even significand; what lies beyond the largest number becomes the largest. Sources: OCP Microscaling Formats (MX) Specification v1.0
(2023), OCP 8-bit Floating Point Specification v1.0 (2023), Standard for Posit Arithmetic (2022).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Format:
    """numbers: float32 [2^bits], of every code; NaN for codes that stand for no number.

    never_zero: a value that is not zero never becomes zero, however small it is (posits).
    """

    bits: int
    numbers: Float[Tensor, "codes"]
    never_zero: bool = False

    @property
    def largest(self) -> float:
        """The largest number."""
        return float(self.numbers[~self.numbers.isnan()].max())

    def nearest(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The nearest number to each value, float32 or float64; zeros are positive."""
        table = _table(self, values.dtype, values.device)
        return table.points[table.place(values)]

    def encode(self, values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The code of the nearest number to each value, float32 or float64; uint8 up to 8 bits, else int32."""
        table = _table(self, values.dtype, values.device)
        return table.codes[table.place(values)]

    def decode(self, codes: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The number of each code, float32."""
        return self.numbers.to(codes.device)[codes.long()]


@dataclass(frozen=True)
class Table:
    """points: the numbers of a format by size. codes: of each. bounds: the least value that is rounded to the next point, of all but the
    last."""

    points: Float[Tensor, "n"]
    codes: Int[Tensor, "n"]
    bounds: Float[Tensor, "n-1"]

    def place(self, values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Which point is nearest to each value."""
        return torch.bucketize(values.contiguous(), self.bounds, right=True)


@cache
def _table(form: Format, dtype: torch.dtype, device: torch.device) -> Table:
    """What is looked up to round values of this type."""
    order = torch.argsort(form.numbers, stable=True)
    order = order[~form.numbers[order].isnan()]
    distinct = torch.ones_like(order, dtype=torch.bool)
    distinct[1:] = form.numbers[order[1:]] != form.numbers[order[:-1]]  # of the two zeros the positive one, whose code is less
    codes, points = order[distinct], form.numbers[order[distinct]].to(dtype)
    middle, above = (points[:-1] + points[1:]) / 2, torch.tensor(torch.inf, dtype=dtype)
    bounds = torch.where(codes[:-1] % 2 == 0, torch.nextafter(middle, above), middle)
    if form.never_zero:
        zero = int((points == 0).nonzero())
        bounds[zero - 1], bounds[zero] = 0.0, torch.nextafter(torch.zeros_like(above), above)
    return Table(points.to(device), codes.to(device, torch.uint8 if form.bits <= 8 else torch.int32), bounds.to(device))


@cache
def float_format(exponent: int, mantissa: int, *, infinities: bool = False, top_is_nan: bool = False) -> Format:
    """Sign, `exponent` bits with bias 2^(exponent - 1) - 1, `mantissa` bits; subnormal where the exponent is 0.

    infinities: the highest exponent stands for no number, as in IEEE 754. top_is_nan: only its highest code does not.
    """
    bits, bias = 1 + exponent + mantissa, 2 ** (exponent - 1) - 1
    half = []
    for code in range(2 ** (exponent + mantissa)):
        power, part = code >> mantissa, code & (2**mantissa - 1)
        number = math.ldexp(part, 1 - bias - mantissa) if power == 0 else math.ldexp(2**mantissa + part, power - bias - mantissa)
        missing = (infinities and power == 2**exponent - 1) or (top_is_nan and code == 2 ** (exponent + mantissa) - 1)
        half.append(math.nan if missing else number)
    return Format(bits, torch.tensor([*half, *(-number for number in half)]))


@cache
def posit_format(bits: int, es: int) -> Format:
    """Posits: sign, a run of equal bits that counts powers of 2^(2^es), up to `es` bits of exponent, and the fraction."""
    numbers = [0.0] * 2**bits
    numbers[2 ** (bits - 1)] = math.nan  # not a real
    for code in range(1, 2 ** (bits - 1)):
        numbers[code] = _posit(code, bits, es)
        numbers[2**bits - code] = -numbers[code]
    return Format(bits, torch.tensor(numbers), never_zero=True)


def _posit(code: int, bits: int, es: int) -> float:
    """The number of a positive code."""
    word = f"{code:0{bits}b}"[1:]
    run = len(word) - len(word.lstrip(word[0]))
    regime = run - 1 if word[0] == "1" else -run
    rest = word[run + 1 :]
    exponent = int(rest[:es].ljust(es, "0"), 2) if es else 0
    fraction = rest[es:]
    return math.ldexp(1 + (int(fraction, 2) / 2 ** len(fraction) if fraction else 0), regime * 2**es + exponent)


@cache
def fixed_format(bits: int) -> Format:
    """Integers in two's complement: with a scale 2^-f, fixed-point numbers with f bits after the point."""
    half = 2 ** (bits - 1)
    return Format(bits, torch.tensor([*range(half), *range(-half, 0)], dtype=torch.float32))


FLOATS: dict[str, Callable[[], Format]] = {
    "e2m1": lambda: float_format(2, 1),
    "e2m3": lambda: float_format(2, 3),
    "e3m2": lambda: float_format(3, 2),
    "e4m3": lambda: float_format(4, 3, top_is_nan=True),
    "e5m2": lambda: float_format(5, 2, infinities=True),
}
"""The floats of 4, 6 and 8 bits by their exponent and mantissa bits."""


def format_named(name: str) -> Format | None:
    """A format by its name: `e4m3`, `posit8es1`, `fixed6`; None where no format is called so."""
    if name in FLOATS:
        return FLOATS[name]()
    found = re.fullmatch(r"(?:posit(\d{1,2})es(\d)|fixed(\d{1,2}))", name)
    if found is None:
        return None
    posit, es, fixed = (None if part is None else int(part) for part in found.groups())
    if fixed is not None:
        return fixed_format(fixed) if 2 <= fixed <= 16 else None
    return posit_format(posit, es) if 4 <= posit <= 16 and es <= 3 else None


def name_of(numbers: Float[Tensor, "codes"]) -> str | None:
    """The name of the format whose table this is, bit for bit; None where it is none of those that have names."""
    bits = (len(numbers) - 1).bit_length()
    names = [*FLOATS, *(f"posit{bits}es{es}" for es in range(4)), f"fixed{bits}"]
    return next((name for name in names if (form := format_named(name)) is not None and _same(form.numbers, numbers.cpu())), None)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first.view(torch.int32), second.view(torch.int32))
