"""Block influence: bounds, scale, and the block that does nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.structure.efficient_vla import EfficientVLA
from thrifty.structure.short_gpt import ShortGPT


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_scale_is_nothing_and_angles_are_bounded(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.randn(2, 3, 8, generator=generator) for _ in range(2))
    found = ShortGPT().influence(before, after)
    assert found.shape == (2, 3)
    assert ((found >= 0) & (found <= 2)).all()
    assert torch.allclose(ShortGPT().influence(before * scale, after / scale), found, atol=1e-6)
    assert torch.equal(EfficientVLA().influence(before, after), found)


def test_against_cosines_taken_one_by_one():
    before, after = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    expected = 1 - torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
    assert torch.allclose(ShortGPT().influence(before, after), expected)


def test_nothing_done_is_no_influence_and_nothing_left_is_some():
    hidden = torch.randn(1, 4, 8)
    assert float(ShortGPT().influence(hidden, hidden).abs().max()) == pytest.approx(0, abs=1e-12)
    assert float(ShortGPT().influence(hidden, -hidden).min()) == pytest.approx(2)
    zero = torch.zeros(1, 1, 8)
    assert ShortGPT().influence(zero, zero).item() == 0
    assert ShortGPT().influence(zero, zero + 1).item() == 1
