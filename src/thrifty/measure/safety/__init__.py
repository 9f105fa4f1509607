"""Whether compression weakened refusals: the same requests to the original and to the result, and what each of them makes of them.

Nothing here changes a model; it is measured only.
"""

from __future__ import annotations

from thrifty.measure.safety.prompts import Pair, read_pairs, shipped_pairs, templated
from thrifty.measure.safety.report import check_safety

__all__ = ["Pair", "check_safety", "read_pairs", "shipped_pairs", "templated"]
