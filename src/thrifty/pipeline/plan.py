"""The plan: what a run will do and what it will cost, before any weight is read.

Memory is the widest block's, not the depth's. The parts of the estimate are named, so that a refusal can say which setting to change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Setting:
    """How the walk runs. All of it is part of the content keys, because it can change the last bits of a result.

    dtype: type of the calibration pass. batch: rows that go through a block at once. order: see `pipeline.block`.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batch: int = 16
    order: Literal["stage", "block"] = "stage"
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The setting as plain JSON values."""
        return {**asdict(self), "dtype": str(self.dtype).removeprefix("torch.")}


@dataclass(frozen=True)
class Cost:
    """What a run needs. Bytes and seconds (0 where nobody asked); `parts` names what the memory peak is made of. device_memory: bytes on a
    device of its own, 0 where the processor does everything."""

    memory: int
    disk: int
    output: int
    seconds: float = 0.0
    parts: dict[str, int] = field(default_factory=dict)
    device_memory: int = 0


def calibration_dtype(stored: torch.dtype, device: str) -> torch.dtype:
    """The type of the calibration pass: the checkpoint's own where the hardware multiplies it natively, else float32."""
    if device != "cpu":
        return stored
    # torch has no public word for this; a version without these says nothing, and float32 is right everywhere
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    fast = any(ask is not None and ask() for ask in asked)
    return torch.bfloat16 if stored == torch.bfloat16 and fast else torch.float32
