"""What the phases of a calibrated run cost at least: floating-point operations from the model's shapes, over what the machine multiplies.

Counted is the arithmetic that no implementation of the same method in the same order can leave out. `forward`: every matrix and the
attention once a token. `gram`: the products of the inputs of each stage, half of a square by symmetry. `solve`: one Cholesky
factor a stage, and per matrix what each column hands on to those after it.
"""

from __future__ import annotations

import statistics
import time

import torch

from thrifty.base.anatomy import Anatomy


def operations(anatomy: Anatomy, rows: int, length: int) -> dict[str, float]:
    """Floating-point operations of each phase for `rows` windows of `length` tokens."""
    found = {"forward": 0.0, "gram": 0.0, "solve": 0.0}
    tokens = rows * length
    for block in anatomy.blocks:
        for stage in block.stages:
            width = stage.linears[0].in_features
            found["gram"] += tokens * width**2
            found["solve"] += width**3 / 3
            for linear in stage.linears:
                found["forward"] += 2 * tokens * linear.out_features * width
                found["solve"] += linear.out_features * width**2
        if block.attention is not None:
            # Scores and their product with the values, over half of the square: the mask is causal.
            found["forward"] += 2 * tokens * length * block.attention.num_heads * block.attention.head_dim
    return found


def flop_rates(size: int = 2048, turns: int = 8) -> dict[str, float]:
    """Operations a second of a square product in the type of what each phase multiplies: bfloat16 in the model and of what its matrices
    read, float32 in the solve."""
    rates = {dtype: _flop_rate(torch.randn(size, size).to(dtype), turns) for dtype in (torch.bfloat16, torch.float32)}
    return {"forward": rates[torch.bfloat16], "gram": rates[torch.bfloat16], "solve": rates[torch.float32]}


def _flop_rate(left: torch.Tensor, turns: int) -> float:
    """Of all cores that the process may use: median, the first turns left out."""
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - start)
    return 2 * len(left) ** 3 / statistics.median(times[2:])
