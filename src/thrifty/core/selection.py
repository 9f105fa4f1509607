"""Which of many vectors span the most: greedy selection by pivoted Cholesky, and what a reader becomes when only they stay.

Picks follow Gram-Schmidt: the vector with the largest part outside the span of those picked before comes next. That is QR with column
pivoting on the matrix of the vectors, and greedily the largest determinant of the picks' Gram matrix; only the Gram matrix is needed, so
vectors may be rows of weights or the activations of neurons.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.low_rank import ridge


def pivots(gram: Float[Tensor, "count count"], kept: int) -> Int[Tensor, "kept"]:
    """The first `kept` vectors in the order in which they are picked; of equals the earlier one.

    gram: [count, count] their inner products. Once nothing is left outside the span, the next round begins with the full lengths of those
    that were not picked.
    """
    products = gram.to(torch.float64)
    lengths = products.diagonal().clamp_min(0)
    free = torch.ones(len(products), dtype=torch.bool)
    chosen: list[int] = []
    while len(chosen) < kept:
        picked = _round(products, lengths.masked_fill(~free, -1.0), kept - len(chosen))
        chosen += picked
        free[picked] = False
    return torch.tensor(chosen[:kept], dtype=torch.long)


def _round(products: Float[Tensor, "count count"], left: Float[Tensor, "count"], wanted: int) -> list[int]:
    """The picks until nothing is left outside their span, at least one; left: squared lengths, below 0 for what must not be picked."""
    left = left.clone()
    nothing = float(left.max()) * len(left) * torch.finfo(torch.float64).eps
    factor = torch.zeros(min(wanted, len(left)), len(left), dtype=torch.float64)
    picked: list[int] = []
    while len(picked) < len(factor):
        best = int(left.argmax())
        if picked and float(left[best]) <= nothing:
            break
        row = products[best] - factor[: len(picked), best] @ factor[: len(picked)]
        length = float(left[best]) ** 0.5
        factor[len(picked)] = row / length if length > 0 else 0.0
        left -= factor[len(picked)].square()
        left[best] = -1.0
        left[picked] = -1.0
        picked.append(best)
    return picked


def best_readable(weight: Float[Tensor, "out count"], gram: Float[Tensor, "count count"], kept: int) -> Int[Tensor, "kept"]:
    """`kept` channels h_i, picked one after the other, each the one with which the least-squares fit of W h gains most.

    gram: mean of h h^T. With S what the picks do not tell of the channels yet, pick i gains ||W S_i||^2 / S_ii. Channels that gain nothing
    follow by their energy.
    """
    products, wide = gram.to(torch.float64), weight.to(torch.float64)
    left, reached = products.diagonal().clamp_min(0).clone(), wide @ products
    nothing = float(left.max()) * len(left) * torch.finfo(torch.float64).eps
    factor = torch.zeros(kept, len(left), dtype=torch.float64)
    picked: list[int] = []
    while len(picked) < kept:
        gain = torch.where(left > nothing, reached.square().sum(0) / left.clamp_min(nothing or 1.0), 0.0)
        gain[picked] = -1.0
        best = int(gain.argmax())
        if float(gain[best]) <= 0:
            rest = products.diagonal().clone()
            rest[picked] = -1.0
            return torch.cat([torch.tensor(picked, dtype=torch.long), rest.argsort(descending=True, stable=True)[: kept - len(picked)]])
        row = (products[best] - factor[: len(picked), best] @ factor[: len(picked)]) / left[best].sqrt()
        reached -= torch.outer(wide @ row, row)
        left -= row.square()
        factor[len(picked)] = row
        picked.append(best)
    return torch.tensor(picked, dtype=torch.long)


def absorb(
    weight: Float[Tensor, "out count"],
    gram: Float[Tensor, "count count"],
    keep: Int[Tensor, "kept"],
    mean: Float[Tensor, "count"] | None = None,
    damp: float = 1e-6,
) -> tuple[Float[Tensor, "out kept"], Float[Tensor, "out"]]:
    """(W', b): W' h_kept + b comes nearest to W h. What the kept channels tell of the others is folded into the reader.

    gram, mean: mean of h h^T and of h. Without a mean b is 0. damp: how hard W' is held to what it was, as a share of the mean diagonal.
    """
    centre = torch.zeros(weight.shape[1], dtype=torch.float64) if mean is None else mean.to(torch.float64)
    spread = gram.to(torch.float64) - torch.outer(centre, centre)
    gone = torch.ones(weight.shape[1], dtype=torch.bool)
    gone[keep] = False
    wide = weight.to(torch.float64)
    told = ridge(spread[keep][:, keep], wide[:, gone] @ spread[gone][:, keep], damp)
    fitted = wide[:, keep] + told
    return fitted.to(weight.dtype), (wide @ centre - fitted @ centre[keep]).to(weight.dtype)
