"""Random matrices in every layout of the container."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.core.codebooks.additive import rate_of_sums
from thrifty.core.formats import FLOATS, fixed_format, posit_format
from thrifty.core.grids import code_limits, snap_scale
from thrifty.core.k_quants import BLOCK, FORMS
from thrifty.core.scaled import STANDARDS
from thrifty.export.container import Held, Layout
from thrifty.export.container.layout import name_of_part

Draw = torch.Generator


def generator(seed: int) -> Draw:
    return torch.Generator().manual_seed(seed)


def scales(draw: Draw, kind: str, out: int, groups: int) -> Tensor:
    """Scales that no type narrower than `kind` holds."""
    exponent = torch.randint(-12, 4, (out, groups), generator=draw)
    power = torch.ldexp(torch.ones(out, groups), exponent)
    if kind == "exponent":
        return power
    mantissa = 1 + torch.rand(out, groups, generator=draw)
    mantissa[0, 0] = {"bfloat16": 1 + 3 / 128, "float16": 1 + 3 / 1024, "float32": 1 + 3 / 2**22}[kind]
    if kind == "float32":
        return power * mantissa
    return snap_scale(power * mantissa, {"bfloat16": 8, "float16": 11}[kind], 2.0**-13, 2.0**5)


def integers(seed: int, out: int, width: int, levels: int, group_size: int, symmetric: bool, kind: str, zeros: float = 0.0) -> Encoded:
    """Codes of layout `int`, a share of which stands for zero."""
    draw = generator(seed)
    low, high = code_limits(levels)
    groups = width // group_size if group_size else 1
    dtype = torch.int8 if levels <= 256 else torch.int16
    codes = torch.randint(low, high + 1, (out, width), generator=draw).to(dtype)
    tensors = {"scale": scales(draw, kind, out, groups)}
    zero = torch.zeros(out, groups, dtype=dtype)
    if not symmetric:
        zero = tensors["zero_point"] = torch.randint(low, high + 1, (out, groups), generator=draw).to(dtype)
    hole = torch.rand(out, width, generator=draw) < zeros
    tensors["codes"] = torch.where(hole, zero.repeat_interleave(width // groups, dim=1), codes)
    return Encoded("int", tensors, (out, width), math.log2(levels), group_size)


def affine(seed: int, out: int, width: int, bits: int, group_size: int, kind: str) -> Encoded:
    """Codes of layout `affine`."""
    draw = generator(seed)
    low, high = code_limits(2**bits)
    groups = width // group_size if group_size else 1
    tensors = {"codes": torch.randint(low, high + 1, (out, width), generator=draw).to(torch.int8)}
    tensors |= {"scale": scales(draw, kind, out, groups), "offset": -scales(draw, kind, out, groups)}
    return Encoded("affine", tensors, (out, width), float(bits), group_size, simulated=True)


def odd_integers(seed: int, out: int, width: int, bits: int, kind: str) -> Encoded:
    """Odd codes on both sides of zero, the largest among them."""
    draw = generator(seed)
    codes = 2 * torch.randint(0, 2**bits, (out, width), generator=draw) - 2**bits + 1
    codes[0, 0] = 2**bits - 1
    return Encoded("int", {"codes": codes.to(torch.int8), "scale": scales(draw, kind, out, 1)}, (out, width), float(bits))


def sums(seed: int, out: int, groups: int, codebooks: int, bits: int, group_size: int, kind: str) -> Encoded:
    """Sums of codewords, with numbers that float16 holds."""
    draw = generator(seed)
    dtype = torch.uint8 if bits <= 8 else torch.uint16
    tensors = {
        "codes": torch.randint(0, 2**bits, (out, groups, codebooks), generator=draw).to(dtype),
        "codebooks": torch.randn(codebooks, 2**bits, group_size, generator=draw).half().float(),
        "scale": scales(draw, kind, out, 1),
    }
    shape = (out, groups * group_size)
    return Encoded("additive", tensors, shape, rate_of_sums(codebooks, bits, group_size, shape), group_size, simulated=True)


def k_quants(seed: int, out: int, blocks: int, kind: str) -> Encoded:
    """Random blocks of K-quants."""
    draw, form = generator(seed), FORMS[kind]

    def whole(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high + 1, (out, count), generator=draw).to(torch.int8)

    groups = blocks * BLOCK // form.group_size
    tensors = {"codes": whole(form.low, form.high, blocks * BLOCK), "multiple": whole(form.least, form.most, groups)}
    tensors["block_scale"] = torch.rand(out, blocks, generator=draw).half().float()
    if form.minimum:
        tensors["minimum"] = whole(0, form.most, groups)
        tensors["block_minimum"] = torch.rand(out, blocks, generator=draw).half().float()
    return Encoded("k_quant", tensors, (out, blocks * BLOCK), form.rate, form.group_size, kind, simulated=True)


TABLES: dict[str, Callable[[], Tensor]] = {
    **{name: (lambda name=name: FLOATS[name]().numbers) for name in FLOATS},
    "posit6es1": lambda: posit_format(6, 1).numbers,
    "posit10es2": lambda: posit_format(10, 2).numbers,
    "fixed5": lambda: fixed_format(5).numbers,
    "fixed12": lambda: fixed_format(12).numbers,
    "three": lambda: torch.tensor([-1.0, 0.0, 1.0]),
    "five": lambda: torch.tensor([-2.25, -0.5, 0.5, 0.75, 3.0]),
}


def numbers(seed: int, out: int, width: int, table: str, group_size: int, kind: str, zeros: float = 0.0) -> Encoded:
    """Codes of layout `numbers`, a share of which stands for zero where the table has one."""
    draw = generator(seed)
    values = TABLES[table]()
    usable = (~values.isnan()).nonzero()[:, 0]
    codes = usable[torch.randint(0, len(usable), (out, width), generator=draw)]
    if bool((values == 0).any()):
        codes[torch.rand(out, width, generator=draw) < zeros] = int((values == 0).nonzero()[0])
    groups = width // group_size if group_size else 1
    tensors = {"codes": codes.to(torch.uint8 if len(values) <= 256 else torch.int32), "numbers": values}
    return Encoded("numbers", {**tensors, "scale": scales(draw, kind, out, groups)}, (out, width), math.log2(len(values)), group_size)


def standard(seed: int, out: int, width: int, name: str) -> Encoded:
    """Codes of one of the standards of small floats."""
    meant = STANDARDS[name]
    kind = {"real": "bfloat16", "power_of_two": "exponent", "e4m3": "bfloat16"}[meant.scale]
    encoded = numbers(seed, out, width, meant.numbers, meant.group_size, kind)
    tensors = dict(encoded.tensors)
    if meant.scale == "e4m3":
        local = torch.randint(1, 120, tensors["scale"].shape, generator=generator(seed)).to(torch.uint8).view(torch.float8_e4m3fn)
        tensors |= {"whole": torch.tensor([2.0**9]), "scale": local.to(torch.float32) / 2.0**9}
    return Encoded("numbers", tensors, encoded.shape, encoded.bits, encoded.group_size, name)


def columns(seed: int, out: int, width: int, most: int) -> Encoded:
    """Codes of layout `int_columns` with 1 to `most` levels."""
    draw = generator(seed)
    levels = torch.randint(1, most + 1, (width,), generator=draw)
    codes = (torch.rand(out, width, generator=draw) * levels).floor().clamp_max(levels - 1)
    tensors = {
        "codes": codes.to(torch.int16),
        "levels": levels.to(torch.int16),
        "low": -torch.rand(out, 1, generator=draw),
        "high": torch.rand(out, 1, generator=draw),
    }
    return Encoded("int_columns", tensors, (out, width), float(torch.log2(levels.to(torch.float64)).mean()))


def values(seed: int, out: int, width: int, dtype: torch.dtype, zeros: float) -> Encoded:
    """Values of layout `dense`, a share of which is zero."""
    draw = generator(seed)
    found = torch.randn(out, width, generator=draw).masked_fill_(torch.rand(out, width, generator=draw) < zeros, 0)
    return Encoded("dense", {"values": found.to(dtype)}, (out, width), 8.0 * dtype.itemsize)


def held(key: str, layout: Layout, encoded: Encoded) -> dict[str, Held]:
    """The parts of a matrix under the names that they have in a file."""
    return {name_of_part(key, part): Held(tensor) for part, tensor in layout.encode(encoded).items()}


def same(first: Encoded, second: Encoded) -> bool:
    """Whether two encodings are equal in everything but `simulated`, bit for bit."""
    plain = all(getattr(first, name) == getattr(second, name) for name in ("layout", "shape", "bits", "group_size", "standard"))
    return (
        plain
        and first.tensors.keys() == second.tensors.keys()
        and all(
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.reshape(-1).clone().view(torch.uint8), b.reshape(-1).clone().view(torch.uint8))
            for a, b in ((first.tensors[name], second.tensors[name]) for name in first.tensors)
        )
    )
