"""K-quants: bytes against the format's own decoder, and fits against brute force."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw, loss
from thrifty.core.grids import grouped
from thrifty.core.k_blocks import pack_blocks, unpack_blocks
from thrifty.core.k_quants import BLOCK, FORMS, Steps, codes_of, fit_steps, half, values_of
from thrifty.core.k_refit import refit_steps

KINDS = tuple(FORMS)


def random_content(seed: int, out: int, blocks: int, kind: str) -> torch.Tensor:
    """Blocks of random bytes whose float16 numbers are finite and not negative."""
    content = torch.randint(0, 256, (out, blocks, FORMS[kind].nbytes), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    for place in {"Q2_K": (81, 83), "Q3_K": (109,), "Q6_K": (209,)}.get(kind, (1, 3)):
        content[..., place] &= 0x3F
    return content.flatten(1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_any_bytes_stand_for_what_the_format_s_own_decoder_makes_of_them(kind: str, seed: int, out: int, blocks: int) -> None:
    content = random_content(seed, out, blocks, kind)
    codes, steps = unpack_blocks(content, kind)
    found = values_of(grouped(codes, FORMS[kind].group_size), steps).flatten(1)
    assert np.array_equal(found.numpy(), gguf.quants.dequantize(content.numpy(), GGMLQuantizationType[kind]))
    assert torch.equal(pack_blocks(codes, steps, kind), content)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forms_are_those_of_the_format(kind: str) -> None:
    form = FORMS[kind]
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (BLOCK, form.nbytes)
    assert form.high - form.low + 1 == 2**form.bits
    assert form.rate == {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}[kind]


# -- fits --------------------------------------------------------------------------------------------------------------


def error(values: torch.Tensor, steps: Steps, kind: str, weight: torch.Tensor) -> torch.Tensor:
    """The weighted squared error of each group, plainly."""
    form = FORMS[kind]
    groups = grouped(values, form.group_size)
    return ((groups - values_of(codes_of(groups, steps, form), steps)).square() * weight.reshape(groups.shape[1:])).sum(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_multiples_of_a_block_fit_its_groups_much_better(kind: str) -> None:
    """Of all that the shared numbers allow, tried one by one for each group."""
    form, values = FORMS[kind], draw(1, 2, BLOCK, dtype=torch.float32)
    weight = draw(2, BLOCK, dtype=torch.float32).square() + 0.01
    steps = fit_steps(values, form, weight)
    found = error(values, steps, kind, weight)
    least = torch.full_like(found, torch.inf)
    for minimum in range(0, form.most + 1, 1 + form.most // 32) if form.minimum else (0,):
        for scale in range(form.least, form.most + 1, 1 + form.most // 32):
            tried = replace(steps, scale=torch.full_like(steps.scale, scale), minimum=torch.full_like(steps.minimum, minimum))
            least = torch.minimum(least, error(values, tried, kind, weight))
    assert float(found.sum()) <= 1.1 * float(least.sum())
    assert float(found.sum()) < float(error(values, fit_steps(values, form), kind, weight).sum())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from([1e-6, 1e-3, 1.0, 1e4]), st.booleans())
def test_blocks_hold_every_fit_and_its_points_are_their_own_nearest(seed: int, kind: str, spread: float, shifted: bool) -> None:
    form, values = FORMS[kind], draw(seed, 3, 2 * BLOCK, dtype=torch.float32) * spread
    values[0] = 0
    values[1, :40] = spread
    if shifted:
        values -= 50 * spread  # every group far from zero
    steps = fit_steps(values, form)
    assert torch.equal(half(steps.block_scale), steps.block_scale) and torch.equal(half(steps.block_minimum), steps.block_minimum)
    codes = codes_of(grouped(values, form.group_size), steps, form)
    found = values_of(codes, steps)
    assert torch.equal(codes_of(found, steps, form), codes)
    assert not bool(torch.signbit(found[found == 0]).any())
    again, same = unpack_blocks(pack_blocks(codes.flatten(1).to(torch.int8), steps, kind), kind)
    assert torch.equal(again, codes.flatten(1).to(torch.int8))
    assert all(torch.equal(getattr(same, name), getattr(steps, name)) for name in ("block_scale", "scale", "block_minimum", "minimum"))


def test_a_matrix_that_lies_on_such_a_grid_is_found_again() -> None:
    for kind in KINDS:
        codes, steps = unpack_blocks(random_content(3, 8, 1, kind), kind)
        values = values_of(grouped(codes, FORMS[kind].group_size), steps).flatten(1)
        fitted = fit_steps(values, FORMS[kind])
        lost = error(values, fitted, kind, torch.ones(BLOCK)).sum() / values.square().sum()
        assert float(lost) < {2: 0.01, 3: 0.01}.get(FORMS[kind].bits, 1e-3), kind


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2, deadline=None)
@given(st.integers(0, 10_000))
def test_fitting_to_outputs_keeps_the_codes_and_never_raises_the_loss(kind: str, seed: int) -> None:
    form, weight = FORMS[kind], draw(seed, 4, BLOCK)
    gram = correlated_gram(seed, BLOCK, 300)
    start = fit_steps(weight, form)
    codes = codes_of(grouped(weight, form.group_size), start, form)
    values = values_of(codes, start).flatten(1).double()
    steps, better = refit_steps(weight, values, gram, start, form)
    assert torch.equal(values_of(codes, steps).flatten(1).double(), better)
    assert loss(weight, better, gram) < loss(weight, values, gram) * (1 + 1e-9)
    assert torch.equal(half(steps.block_scale), steps.block_scale)
    assert bool((steps.scale >= form.least).all() and (steps.scale <= form.most).all() and (steps.minimum >= 0).all())
