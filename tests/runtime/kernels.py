"""Which tests need what."""

from __future__ import annotations

import pytest

from thrifty.runtime.linear import multiplies_bytes

needs_kernels = pytest.mark.skipif(
    not multiplies_bytes(), reason="this processor adds pairs of byte products up in 16 bits: codes are decoded here, as other tests check"
)
