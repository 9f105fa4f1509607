"""Layers that keep the container's codes packed, against the decoded matrix."""

from __future__ import annotations

import pytest
import torch

from tests.export.container.matrices import columns, integers, numbers, values
from thrifty.runtime.container import packable
from thrifty.runtime.linear import PackedLinear


@pytest.mark.parametrize("name", ["ternary", "three bits", "five levels", "seven bits", "posit", "fp6", "table"])
def test_packed_layers_compute_what_the_matrix_does(name: str) -> None:
    encoded = {
        "ternary": integers(0, 24, 32, 3, 0, True, "bfloat16"),
        "three bits": integers(1, 24, 32, 8, 8, False, "bfloat16"),
        "five levels": integers(2, 24, 32, 5, 16, True, "float16"),
        "seven bits": integers(3, 24, 32, 128, 0, True, "bfloat16"),
        "posit": numbers(4, 24, 32, "posit6es1", 0, "exponent"),
        "fp6": numbers(5, 24, 32, "e3m2", 8, "exponent"),
        "table": numbers(6, 24, 32, "five", 0, "bfloat16"),
    }[name]
    held = packable(encoded)
    assert held is not None and torch.equal(held.decode(), encoded.decode())
    layer = PackedLinear(held, bias=False, dtype=torch.float32)
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(rows), rows @ encoded.decode().T)
    assert sum(buffer.nbytes for buffer in layer.buffers()) < 4 * 24 * 32


def test_others_are_decoded_while_loading() -> None:
    wide = numbers(0, 4, 8, "posit10es2", 0, "exponent")
    assert [packable(encoded) for encoded in (wide, columns(0, 4, 8, 5), values(0, 4, 8, torch.float32, 0.5))] == [None] * 3
