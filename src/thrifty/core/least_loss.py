"""Few non-zeros in many short rows, each with a matrix of its own for what it reads: the mask by what an entry costs, the rest exactly.

    cost of entry j of row w:   w_j^2 / [H^-1]_jj,  what (w - v) H (w - v)^T rises to when it alone is zero and the others make up for it
    what stays:                 v_K = w_K + H_KK^-1 H_KR w_R,  K what the row keeps, R what it gives up

H is damped by a share of its mean diagonal. Short rows (the taps of a convolution, a small rank) make exact systems cheap.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ENTRIES = 1 << 22
"""Numbers of the systems that are solved at once."""


def damped(gram: Float[Tensor, "rows n n"], share: float) -> Float[Tensor, "rows n n"]:
    """`share` of the mean diagonal added to the diagonal of each, or all of 1 where nothing was ever read; float64."""
    gram = gram.double()
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    added = torch.where(mean > 0, share * mean, 1.0)
    return gram + added[:, None, None] * torch.eye(gram.shape[1], dtype=torch.float64)


def costs(weight: Float[Tensor, "rows n"], hessian: Float[Tensor, "rows n n"]) -> Float[Tensor, "rows n"]:
    """What each entry costs when it alone goes. hessian: positive definite, one of each row or a single one for all."""
    inverse = torch.linalg.inv(hessian).diagonal(dim1=1, dim2=2)
    return weight.double().square() / inverse


def refitted(weight: Float[Tensor, "rows n"], hessian: Float[Tensor, "rows n n"], keep: Bool[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """The values of what stays that lose least, zero elsewhere; as `weight` in type, and bit for bit where a row keeps everything."""
    width = weight.shape[1]
    out = torch.empty_like(weight)
    for some in _chunks(len(weight), max(1, ENTRIES // max(width * width, 1))):
        mine, kept = hessian[some] if len(hessian) > 1 else hessian, keep[some]
        both = kept[:, :, None] & kept[:, None, :]
        system = torch.where(both, mine, 0.0) + torch.diag_embed((~kept).double())
        lost = weight[some].double().masked_fill(kept, 0.0)
        moved = torch.linalg.solve(system, ((mine @ lost[..., None])[..., 0]).masked_fill(~kept, 0.0))
        values = weight[some].double().masked_fill(~kept, 0.0) + moved
        out[some] = values.masked_fill(~kept, 0.0).to(weight.dtype)
    return out


def _chunks(rows: int, size: int) -> Iterator[slice]:
    for first in range(0, rows, size):
        yield slice(first, first + size)
