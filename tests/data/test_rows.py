"""Rows: what they count, what their digest depends on, and what they refuse."""

from __future__ import annotations

import hashlib

import pytest
import torch

from thrifty.base.errors import InputError
from thrifty.data import Rows


def _rows() -> Rows:
    return Rows.of({"input_ids": torch.arange(12).view(3, 4), "pixel_values": torch.ones(3, 2, 2)})


def test_counts() -> None:
    rows = _rows()
    assert (rows.rows, rows.tokens, rows.ids, rows.source) == (3, 12, (0, 1, 2), "given tensors")
    assert Rows.of({"pixel_values": torch.ones(5, 2)}).tokens == 5


def test_select_is_a_slice_with_ids_and_targets() -> None:
    rows = Rows({"input_ids": torch.arange(12).view(3, 4)}, (7, 3, 5), "text", torch.arange(12).view(3, 4) + 100)
    part = rows.select(1, 3)
    assert part.ids == (3, 5) and part.source == "text"
    assert part.inputs["input_ids"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert part.targets is not None and part.targets[0, 0] == 104


def test_digest_is_sha256_of_what_the_docstring_says() -> None:
    tensor = torch.tensor([[1, 2]], dtype=torch.int64)
    expected = hashlib.sha256(b"input_ids\0torch.int64\0(1, 2)\0" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little"))
    assert Rows.of({"input_ids": tensor}).digest == expected.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"input_ids": torch.arange(12).view(3, 4) + 1, "pixel_values": torch.ones(3, 2, 2)},
        {"input_ids": torch.arange(12).view(3, 4).int(), "pixel_values": torch.ones(3, 2, 2)},
        {"input_ids": torch.arange(12).view(3, 2, 2), "pixel_values": torch.ones(3, 2, 2)},
        {"inputs": torch.arange(12).view(3, 4), "pixel_values": torch.ones(3, 2, 2)},
        {"input_ids": torch.arange(12).view(3, 4)},
    ],
)
def test_digest_changes_with_content(other: dict[str, torch.Tensor]) -> None:
    assert Rows.of(other).digest != _rows().digest


def test_digest_sees_targets_but_not_the_order_of_names_nor_strides() -> None:
    rows = _rows()
    turned = dict(reversed(rows.inputs.items()))
    turned["input_ids"] = rows.inputs["input_ids"].t().contiguous().t()
    assert Rows(turned, rows.ids, "elsewhere").digest == rows.digest
    assert Rows(rows.inputs, rows.ids, rows.source, rows.inputs["input_ids"]).digest != rows.digest
    assert Rows.of({"x": torch.ones(1, 2, dtype=torch.bfloat16)}).digest != Rows.of({"x": torch.ones(1, 2)}).digest


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "no tensors"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)}, "a has 2, b has 3"),
        ({"a": torch.ones(0, 3)}, "no rows"),
        ({"a": torch.tensor(1.0)}, "a is not a tensor"),
    ],
)
def test_refusals(inputs: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Rows.of(inputs)
