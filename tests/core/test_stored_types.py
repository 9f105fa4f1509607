"""The names of types in safetensors headers are those that the format's own library writes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

from thrifty.core.stored_types import STORED_TYPES


@pytest.mark.parametrize(("name", "dtype"), STORED_TYPES.items())
def test_the_library_writes_this_name(name: str, dtype: torch.dtype) -> None:
    content = save({"a": torch.zeros(2, dtype=dtype)})
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])["a"]["dtype"] == name
