"""Finding what is no number, in any type and shape."""

from __future__ import annotations

import pytest
import torch

from thrifty.core.finite import all_finite

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_found_wherever_it_stands(dtype: torch.dtype, bad: float) -> None:
    for place in (0, 7, 76):
        values = torch.linspace(-3, 3, 77)
        assert all_finite(values.to(dtype))
        values[place] = bad if dtype != torch.float8_e4m3fn else float("nan")  # which has no infinities
        assert not all_finite(values.to(dtype).view(7, 11))


def test_the_largest_numbers_integers_and_nothing_are_finite() -> None:
    assert all_finite(torch.tensor([torch.finfo(torch.float32).max, torch.finfo(torch.float32).min]))
    assert all_finite(torch.tensor([2**31 - 1], dtype=torch.int32))
    assert all_finite(torch.empty(0, 4))
    assert not all_finite(torch.tensor(float("nan")))
