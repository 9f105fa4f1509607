"""Small number formats: every code against independent decoders, rounding against ml_dtypes, torch and a brute force."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.formats import FLOATS, Format, fixed_format, float_format, posit_format

PEERS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
POSITS = [(bits, es) for bits in range(4, 17) for es in range(4)]
FORMATS: dict[str, Format] = {
    **{name: make() for name, make in FLOATS.items()},
    "fixed 5": fixed_format(5),
    "posit 6, 0": posit_format(6, 0),
    "posit 8, 1": posit_format(8, 1),
    "posit 8, 2": posit_format(8, 2),
}


def finite(form: Format) -> torch.Tensor:
    """The numbers of a format by size, the two zeros of floats as one."""
    return torch.unique(form.numbers[~form.numbers.isnan()])


# -- floats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_every_code_is_the_number_that_ml_dtypes_has(name):
    form, peer = FLOATS[name](), PEERS[name]
    assert form.bits == ml_dtypes.finfo(peer).bits and form.numbers.numel() == 2**form.bits
    theirs = np.arange(2**form.bits, dtype=np.uint8).view(peer).astype(np.float32)
    known = np.isfinite(theirs)
    assert np.array_equal(form.numbers.numpy()[known], theirs[known])
    assert np.isnan(form.numbers.numpy()[~known]).all()
    assert form.largest == float(ml_dtypes.finfo(peer).max)


def hard_values(form: Format) -> torch.Tensor:
    """Every number, every middle between two, and what lies just beside them, within the range; random values too."""
    numbers = finite(form)
    places = torch.cat([numbers, (numbers[:-1] + numbers[1:]) / 2])
    infinity = torch.tensor(torch.inf)
    beside = torch.cat([torch.nextafter(places, infinity), torch.nextafter(places, -infinity)])
    chance = torch.Generator().manual_seed(0)
    spread = torch.randn(20_000, generator=chance) * torch.exp2(torch.rand(20_000, generator=chance) * 30 - 20)
    return torch.cat([places, beside, spread]).clamp(-form.largest, form.largest)


@pytest.mark.parametrize("name", PEERS)
def test_floats_are_rounded_as_ml_dtypes_rounds_them_bit_by_bit(name):
    form = FLOATS[name]()
    values = hard_values(form)
    theirs = values.numpy().astype(PEERS[name])
    assert np.array_equal(form.nearest(values).numpy(), theirs.astype(np.float32))
    codes = theirs.view(np.uint8) & (2**form.bits - 1)
    codes[theirs.astype(np.float32) == 0] = 0  # zeros are positive here
    assert np.array_equal(form.encode(values).numpy(), codes)


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_floats_are_rounded_as_torch_rounds_them(name, dtype):
    values = hard_values(FLOATS[name]())
    assert torch.equal(FLOATS[name]().nearest(values), values.to(dtype).float())


@pytest.mark.parametrize(("bits", "dtype"), [((5, 10), torch.float16), ((8, 7), torch.bfloat16)])
def test_wider_floats_too(bits, dtype):
    form = float_format(*bits, infinities=True)
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 3
    assert torch.equal(form.nearest(values), values.to(dtype).float())
    assert form.largest == torch.finfo(dtype).max


# -- posits --------------------------------------------------------------------------------------------------------------


def read_posits(bits: int, es: int) -> np.ndarray:
    """Every posit by its code, all at once and in whole numbers: an independent decoder."""
    code = np.arange(2**bits, dtype=np.int64)
    negative = code >= 2 ** (bits - 1)
    word = np.where(negative, 2**bits - code, code) << (64 - bits)  # the sign leads
    word = word << 1  # now the run does
    first = word < 0
    run = np.cumprod([(word << place < 0) == first for place in range(bits - 1)], axis=0).sum(axis=0)
    power = np.where(first, run - 1, -run) << es
    rest = (word << np.minimum(run + 1, 63)).astype(np.uint64)  # zeros follow the last bit
    power = power + (rest >> np.uint64(64 - es)).astype(np.int64) if es else power
    fraction = (rest << np.uint64(es)) >> np.uint64(32)
    numbers = np.ldexp(1 + fraction.astype(np.float64) / 2**32, power)
    numbers = np.where(negative, -numbers, numbers)
    numbers[0], numbers[2 ** (bits - 1)] = 0.0, np.nan
    return numbers


@pytest.mark.parametrize(("bits", "es"), POSITS)
def test_every_posit_is_decoded_and_round_trips(bits, es):
    form = posit_format(bits, es)
    assert np.array_equal(form.numbers.double().numpy(), read_posits(bits, es), equal_nan=True)
    codes = torch.tensor([code for code in range(2**bits) if code != 2 ** (bits - 1)])
    assert torch.equal(form.encode(form.decode(codes)).long(), codes)
    # In the order of their codes as signed integers, and minus is the two's complement.
    signed = torch.cat([codes[codes >= 2 ** (bits - 1)], codes[codes < 2 ** (bits - 1)]])
    assert bool((form.decode(signed).diff() > 0).all())
    assert torch.equal(form.encode(-form.decode(codes)).long(), (2**bits - codes) % 2**bits)


@pytest.mark.parametrize(("bits", "es"), POSITS)
def test_every_value_becomes_the_nearest_posit_and_of_two_the_even_one(bits, es):
    form = posit_format(bits, es)
    numbers = finite(form).double()
    middles, above = (numbers[:-1] + numbers[1:]) / 2, torch.tensor(torch.inf, dtype=torch.float64)
    lower, upper = numbers[:-1], numbers[1:]
    beside = (lower != 0) & (upper != 0)  # next to zero there is no middle: nothing but zero becomes zero
    even = torch.where(form.encode(lower) % 2 == 0, lower, upper)
    assert torch.equal(form.nearest(middles)[beside], even[beside])
    assert torch.equal(form.nearest(torch.nextafter(middles, above))[beside], upper[beside])
    assert torch.equal(form.nearest(torch.nextafter(middles, -above))[beside], lower[beside])


@pytest.mark.parametrize(("bits", "es", "largest"), [(8, 0, 2.0**6), (8, 1, 2.0**12), (8, 2, 2.0**24), (16, 1, 2.0**28)])
def test_posits_end_where_the_standard_has_them(bits, es, largest):
    form = posit_format(bits, es)
    least = 1 / largest
    assert form.largest == largest and float(finite(form)[finite(form) > 0][0]) == least
    tiny = torch.tensor([least / 1e6, -least / 1e6, 1e-30, -1e-30, 0.0, -0.0, largest * 9, -math.inf])
    assert form.nearest(tiny).tolist() == [least, -least, least, -least, 0.0, 0.0, largest, -largest]
    assert form.numbers[2 ** (bits - 2)] == 1.0


# -- what holds for all --------------------------------------------------------------------------------------------------


FLOATING = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.sampled_from(sorted(FORMATS)), st.lists(FLOATING, min_size=1, max_size=40), st.sampled_from([torch.float32, torch.float64]))
def test_nothing_is_nearer_than_the_nearest(name, values, dtype):
    form = FORMATS[name]
    given_values = torch.tensor(values, dtype=dtype) * (1 if dtype == torch.float32 else 1 + 2.0**-40)
    found = form.nearest(given_values)
    gap = (given_values.double()[:, None] - finite(form).double()).abs()
    if form.never_zero:
        gap[:, finite(form) == 0] = torch.where(given_values == 0, 0.0, torch.inf).double()[:, None]
    assert torch.equal((given_values.double() - found.double()).abs(), gap.amin(1))
    assert torch.equal(form.decode(form.encode(given_values)), found)
    assert torch.equal(form.nearest(found), found)
    assert not bool(torch.signbit(found[found == 0]).any())
    order = torch.argsort(given_values)
    assert bool((found[order].diff() >= 0).all())
    if not name.startswith("fixed"):
        assert torch.equal(form.nearest(-given_values), 0 - found)


@pytest.mark.parametrize("bits", range(2, 17))
def test_fixed_point_is_the_integers(bits):
    form = fixed_format(bits)
    assert finite(form).tolist() == list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    assert form.decode(torch.tensor([2**bits - 1])).tolist() == [-1.0]
    assert form.nearest(torch.tensor([0.5, 1.5, -0.5, 1e9])).tolist() == [0.0, 2.0 if bits > 2 else 1.0, 0.0, 2.0 ** (bits - 1) - 1]
