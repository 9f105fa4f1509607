"""Every layout on bare tensors: encoding and decoding are each other's inverse, and take the bytes that theory says."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.container.matrices import (
    TABLES,
    affine,
    columns,
    held,
    integers,
    k_quants,
    numbers,
    odd_integers,
    same,
    standard,
    sums,
    values,
)
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded
from thrifty.core.formats import format_named, name_of, posit_format
from thrifty.core.k_quants import FORMS
from thrifty.core.scaled import STANDARDS
from thrifty.export.container import Parts, estimate, layout_of, layouts
from thrifty.export.container.scales import narrowest, pack_scale
from thrifty.weights.base import Target
from thrifty.weights.target.affine import Affine
from thrifty.weights.target.float import SmallFloat
from thrifty.weights.target.int import Int
from thrifty.weights.target.posit import Posit

SEED = st.integers(0, 2**32)
SIZE = st.integers(1, 5)
KIND = st.sampled_from(["exponent", "bfloat16", "float16", "float32"])
ZEROS = st.sampled_from([0.0, 0.5, 1.0])


def returns(encoded: Encoded, sparse: bool) -> int:
    """Check that a matrix comes back; returns its bytes."""
    layout = layout_of(encoded, sparse=sparse)
    stored = held("k", layout, encoded)
    assert all(len(part.shape) == 1 for part in stored.values())
    assert stored.keys() <= {"k", *(f"k.{part}" for part in layout.part_names)}
    again = type(layout).model_validate({name: value for name, value in layout.to_json().items() if name != "layout"})
    assert again == layout
    found = again.decode(Parts("k", stored), encoded.shape)
    assert same(found, encoded)
    assert torch.equal(found.decode(), encoded.decode())
    return sum(part.nbytes for part in stored.values())


@settings(max_examples=60, deadline=None)
@given(
    SEED,
    SIZE,
    SIZE,
    st.integers(2, 300) | st.sampled_from([512, 4096, 32768]),
    st.integers(0, 9),
    st.booleans(),
    KIND,
    st.booleans(),
    ZEROS,
)
def test_integers(
    seed: int, out: int, groups: int, levels: int, group_size: int, symmetric: bool, kind: str, sparse: bool, zeros: float
) -> None:
    width = groups * group_size if group_size else groups * 3
    returns(integers(seed, out, width, levels, group_size, symmetric, kind, zeros), sparse)


@settings(max_examples=60, deadline=None)
@given(SEED, SIZE, SIZE, st.sampled_from(list(TABLES)), st.integers(0, 9), KIND, st.booleans(), ZEROS)
def test_numbers(seed: int, out: int, groups: int, table: str, group_size: int, kind: str, sparse: bool, zeros: float) -> None:
    returns(numbers(seed, out, groups * (group_size or 3), table, group_size, kind, zeros), sparse)


@pytest.mark.parametrize("name", STANDARDS)
def test_standards(name: str) -> None:
    encoded = standard(0, 6, 96, name)
    scale = {"real": 12, "power_of_two": 18, "e4m3": 36 + 4}[STANDARDS[name].scale]
    assert returns(encoded, False) == 6 * 96 * encoded.bits / 8 + scale
    assert layout_of(encoded).to_json()["standard"] == name


@settings(max_examples=60, deadline=None)
@given(SEED, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 17, 300, 32767]))
def test_columns(seed: int, out: int, width: int, most: int) -> None:
    returns(columns(seed, out, width, most), False)


@settings(max_examples=30, deadline=None)
@given(SEED, SIZE, st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), ZEROS)
def test_values(seed: int, out: int, width: int, dtype: torch.dtype, zeros: float) -> None:
    returns(values(seed, out, width, dtype, zeros), True)


@settings(max_examples=40, deadline=None)
@given(SEED, SIZE, st.integers(1, 9), st.integers(1, 6), KIND)
def test_odd_integers_take_no_more_than_their_levels(seed: int, out: int, width: int, bits: int, kind: str) -> None:
    encoded = odd_integers(seed, out, width, bits, kind)
    scale = len(pack_scale(encoded.tensors["scale"], narrowest(encoded.tensors["scale"])).view(torch.uint8))
    assert returns(encoded, False) == out * -(-bits * width // 8) + scale
    assert layout_of(encoded, sparse=True) == layout_of(encoded), "no code of these is zero"


@settings(max_examples=40, deadline=None)
@given(SEED, SIZE, SIZE, st.integers(1, 4), st.integers(1, 9), st.integers(1, 8), KIND)
def test_sums_of_codewords(seed: int, out: int, groups: int, codebooks: int, bits: int, group_size: int, kind: str) -> None:
    encoded = sums(seed, out, groups, codebooks, bits, group_size, kind)
    parts = held("k", layout_of(encoded), encoded)
    assert parts["k"].nbytes == out * -(-groups * codebooks * bits // 8)
    returns(encoded, False)


@settings(max_examples=40, deadline=None)
@given(SEED, SIZE, SIZE, st.integers(1, 8), st.integers(0, 9), KIND)
def test_affine_codes(seed: int, out: int, groups: int, bits: int, group_size: int, kind: str) -> None:
    width = groups * (group_size or 1)
    encoded = affine(seed, out, width, bits, group_size, kind)
    bytes_ = returns(encoded, False)
    held_in_two_bytes = kind in ("bfloat16", "float16")
    assert bytes_ == estimate(encoded) or not held_in_two_bytes
    broken = replace(encoded, tensors={**encoded.tensors, "codes": encoded.tensors["codes"].to(torch.int16) + 2**bits})
    with pytest.raises(RunError, match=f"codes of {2**bits} levels"):
        layout_of(broken).encode(broken)


@settings(max_examples=20, deadline=None)
@given(SEED, SIZE, st.integers(1, 2), st.sampled_from(list(FORMS)))
def test_k_quants_take_their_blocks(seed: int, out: int, blocks: int, kind: str) -> None:
    encoded = k_quants(seed, out, blocks, kind)
    assert returns(encoded, False) == out * blocks * FORMS[kind].nbytes == estimate(encoded)
    broken = replace(encoded, tensors={**encoded.tensors, "codes": encoded.tensors["codes"] + 8 * 2 ** FORMS[kind].bits // 8})
    with pytest.raises(RunError, match="codes of"):
        layout_of(broken).encode(broken)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "bits"), [(3, "8/5"), (4, "2"), (5, "7/3"), (8, "3"), (16, "4"), (32, "5"), (64, "6"), (128, "7"), (256, "8")]
)
def test_integers_take_their_bits(levels: int, bits: str) -> None:
    out, width, group_size = 8, 24 * 40, 96
    codes = math.ceil(Fraction(bits) * width / 8) * out
    for symmetric in (True, False):
        size = returns(integers(1, out, width, levels, group_size, symmetric, "bfloat16"), False)
        zero_points = 0 if symmetric else math.ceil(Fraction(bits) * out * width // group_size / 8)
        assert abs(size - codes - 2 * out * width // group_size - zero_points) <= 1


def test_half_of_the_entries_take_a_bit_for_each_and_their_codes() -> None:
    encoded = integers(1, 64, 256, 3, 0, True, "exponent", zeros=0.5)
    kept = int((encoded.tensors["codes"] != 0).sum())
    assert returns(encoded, True) == 64 * 256 // 8 + math.ceil(kept / 8) + 64  # of three levels two are left, one bit
    dense = values(1, 64, 256, torch.bfloat16, 0.5)
    assert returns(dense, True) == 64 * 256 // 8 + 2 * int((dense.tensors["values"] != 0).sum())


def test_columns_take_little_more_than_their_levels_need() -> None:
    encoded = columns(0, 256, 512, 12)
    need = 256 * 512 * encoded.bits / 8
    assert need < returns(encoded, False) - 8 * 256 < 1.03 * need


@pytest.mark.parametrize("name", TABLES)
def test_known_tables_are_named_and_others_stored(name: str) -> None:
    encoded = numbers(0, 4, 12, name, 0, "exponent")
    known = name not in ("three", "five")
    layout = layout_of(encoded)
    assert layout.to_json().get("numbers", "") == (name if known else "")
    assert ("numbers" in layout.encode(encoded)) != known


def test_names_of_formats() -> None:
    for name in ("e2m1", "posit4es0", "posit9es3", "fixed2", "fixed16"):
        form = format_named(name)
        assert form is not None and name_of(form.numbers) == name
    assert name_of(posit_format(8, 1).numbers * 2) is None and name_of(torch.zeros(3)) is None
    assert [format_named(name) for name in ("posit3es0", "posit8es4", "fixed17", "e9m9", "posit8es1 ")] == [None] * 5


@pytest.mark.parametrize("sparse", [False, True])
def test_estimates_are_the_sizes(sparse: bool) -> None:
    for encoded in (
        integers(0, 96, 160, 8, 32, False, "bfloat16", 0.5),
        integers(0, 96, 160, 3, 0, True, "bfloat16", 0.5),
        numbers(0, 96, 160, "posit6es1", 32, "bfloat16", 0.5),
        standard(0, 96, 160, "nvfp4"),
        columns(0, 160, 160, 12),
    ):
        meta = {name: tensor if name == "numbers" else tensor.to("meta") for name, tensor in encoded.tensors.items()}
        if encoded.standard:
            meta["scale"] = torch.empty(encoded.tensors["scale"].shape, dtype=torch.float8_e4m3fn, device="meta")
        outline = Encoded(encoded.layout, meta, encoded.shape, encoded.bits, encoded.group_size)
        kept = 1 - encoded.sparsity if sparse and encoded.layout != "int_columns" and not encoded.standard else 1.0
        size = returns(encoded, kept < 1)
        assert estimate(outline, kept) == pytest.approx(size, rel=0.02 if encoded.layout == "int_columns" else 0.005)


@pytest.mark.parametrize(
    ("target", "kept", "bits"),
    [
        (Int(3, 128), 1.0, 3.125),
        (Int(group_size=128, levels=3), 1.0, 1.727),
        (Int(4, 32, False), 1.0, 4.625),
        (Posit(6), 1.0, 6.002),
        (Affine(), 1.0, 4.5),
        (SmallFloat("e2m3", 32, "power_of_two"), 1.0, 6.25),
        (Int(group_size=0, levels=3), 0.5, 1.504),
    ],
)
def test_the_table_of_the_page(target: Target, kept: float, bits: float) -> None:
    assert round(8 * estimate(target.outline(512, 4096), kept) / (512 * 4096), 3) == bits
    page = (Path(__file__).parents[3] / "docs" / "container.md").read_text()
    assert f" {bits} |" in page


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_codes_that_cannot_be_held_are_not_written() -> None:
    good = integers(0, 2, 6, 4, 0, True, "bfloat16")
    wide = Encoded("int", {**good.tensors, "codes": good.tensors["codes"] + 5}, good.shape, good.bits)
    for encoded in (
        wide,
        Encoded("numbers", {**numbers(0, 2, 6, "e4m3", 0, "exponent").tensors, "codes": torch.full((2, 6), 127)}, (2, 6), 8.0),
        Encoded("int_columns", {**columns(0, 2, 6, 3).tensors, "codes": torch.full((2, 6), 3)}, (2, 6), 1.5),
    ):
        with pytest.raises(RunError, match="codes"):
            layout_of(encoded).encode(encoded)


def test_an_unknown_layout_is_not_written() -> None:
    with pytest.raises(RunError, match="no layout"):
        layout_of(Encoded("lattice", {}, (1, 1), 1.0))  # type: ignore[arg-type]
    assert set(layouts()) >= {"int", "numbers", "int_columns", "dense"}


def test_codes_that_stand_for_no_number_are_not_read() -> None:
    encoded = numbers(0, 2, 6, "e4m3", 0, "exponent")
    layout = layout_of(encoded)
    stored = held("k", layout, encoded)
    stored["k"].tensor[3] = 0x7F
    with pytest.raises(InputError, match="stands for no number"):
        layout.decode(Parts("k", stored), encoded.shape)
