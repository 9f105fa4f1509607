"""Sums of codewords in place of the groups of a matrix, fitted to what the matrix does to its inputs.

    V_i = s_i (sum_m C_m[k_i1m], .., sum_m C_m[k_igm]),    min tr((W - V) G (W - V)^T)

Row i of W [out, in] is cut into groups of d consecutive inputs. Each of the three parts is found with the other two fixed: the indices k by
beam search, group after group, since an error in one group can make up for that in another; the codebooks C by conjugate gradients, since
the loss is a quadratic form of them; the scales s in closed form. None of the three raises the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.codebooks.additive import beam_search_in, sum_codewords
from thrifty.core.codebooks.kmeans import sums
from thrifty.core.grids import snap_scale
from thrifty.core.linalg import upper_factor
from thrifty.core.scaled import LARGEST, SMALLEST

TOGETHER = 128
"""Inputs whose groups are gone through one by one before their changes reach the rest as one product."""

SCALE_BITS = 8
"""Significant bits of a scale: bfloat16 holds it."""

RIDGE = 1e-6
"""Share of the mean curvature that is added to each entry's own, so that entries that hardly count have a direction to go, too."""


@dataclass(frozen=True, eq=False)
class Coded:
    """codes: [out, groups, m] of any integer type. codebooks: [m, k, d]. scale: [out, 1]."""

    codes: Int[Tensor, "out groups m"]
    codebooks: Float[Tensor, "m k d"]
    scale: Float[Tensor, "out one"]

    def decode(self) -> Float[Tensor, "out in"]:
        """The matrix."""
        return sum_codewords(self.codebooks, self.codes).flatten(1) * self.scale


def held_scale(scale: Float[Tensor, "out one"]) -> Float[Tensor, "out one"]:
    """The nearest scales that bfloat16 holds."""
    return snap_scale(scale.to(torch.float32), SCALE_BITS, SMALLEST, LARGEST)


def held_codebooks(codebooks: Float[Tensor, "m k d"]) -> Float[Tensor, "m k d"]:
    """The nearest codebooks that float16 holds, in float32."""
    most = torch.finfo(torch.float16).max
    return codebooks.clamp(-most, most).to(torch.float16).to(torch.float32)


def sweep_codes(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], now: Coded, beam: int) -> Coded | None:
    """Codes from nothing: group after group is fixed, as if the groups to come were free to make up for its error; those with the largest
    inputs first. None where the Gram matrix has no factor.

    With gram = R R^T, R upper triangular, the loss is  sum_j || (w_j - v_j) R_jj + sum_(i<j) (w_i - v_i) R_ij ||^2  over groups j.
    """
    size = now.codebooks.shape[2]
    groups = gram.diagonal().view(-1, size).sum(1).argsort(descending=True, stable=True)
    columns = (groups[:, None] * size + torch.arange(size, device=gram.device)).flatten()
    factor = upper_factor(gram[columns][:, columns])
    if factor is None:
        return None
    weight, error = weight[:, columns], torch.empty_like(weight)
    codes = torch.empty_like(now.codes, dtype=torch.int64)
    for place, group in enumerate(groups.tolist()):
        first, last = place * size, (place + 1) * size
        own = factor[first:last, first:last]
        reached = error[:, :first] @ factor[:first, first:last]
        pulls = (weight[:, first:last] @ own + reached) @ own.T / now.scale
        codes[:, group] = beam_search_in(own @ own.T, pulls, now.codebooks, beam)
        error[:, first:last] = weight[:, first:last] - sum_codewords(now.codebooks, codes[:, group]) * now.scale
    return replace(now, codes=codes)


def search_codes(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], now: Coded, beam: int) -> Coded:
    """One pass over the groups: the codes of each are chosen again while those of the others are as they are by then."""
    size = now.codebooks.shape[2]
    error = weight - now.decode()
    codes = now.codes.to(torch.int64, copy=True)
    block = max(size, TOGETHER // size * size)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        slope = error @ gram[:, start:stop]
        for first in range(start, stop, size):
            group, inside = first // size, slice(first - start, first - start + size)
            metric = gram[first : first + size, first : first + size]
            old = codes[:, group]
            new = beam_search_in(metric, slope[:, inside] / now.scale, now.codebooks, beam, old)
            change = (sum_codewords(now.codebooks, new) - sum_codewords(now.codebooks, old)) * now.scale
            error[:, first : first + size] -= change
            slope[:, inside.stop :] -= change @ gram[first : first + size, first + size : stop]
            codes[:, group] = new
    return replace(now, codes=codes)


def fit_codebooks(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], now: Coded, iterations: int) -> Coded:
    """The codebooks after some steps of conjugate gradients, preconditioned by each entry's own curvature [d, d].

    They end early where all that is left of the slope is rounding error, which would lead them astray.
    """
    rounding = torch.finfo(weight.dtype).eps
    solve = _own_curvature(gram, now)
    change = torch.zeros_like(now.codebooks)
    rest = _gather(((weight - now.decode()) @ gram) * now.scale, now)
    direction = solve(rest)
    first = energy = float((rest * direction).sum())
    for _ in range(iterations):
        moved = sum_codewords(direction, now.codes).flatten(1) * now.scale
        image = _gather((moved @ gram) * now.scale, now)
        curvature = float((direction * image).sum())
        if not curvature > 0 or not energy > rounding * first:
            break
        step = energy / curvature
        change += step * direction
        rest = rest - step * image
        towards = solve(rest)
        before, energy = energy, float((rest * towards).sum())
        direction = towards + energy / before * direction
    return replace(now, codebooks=now.codebooks + change)


def fit_scales(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], now: Coded) -> Float[Tensor, "out one"]:
    """The scale of each row with the least loss; the old one where the row's codewords have no effect, or a negative one would be best."""
    words = sum_codewords(now.codebooks, now.codes).flatten(1)
    image = words @ gram
    own = torch.linalg.vecdot(image, words)
    best = torch.linalg.vecdot(image, weight) / own
    return torch.where((own > 0) & (best > 0), best, now.scale[:, 0])[:, None]


def _own_curvature(gram: Float[Tensor, "in in"], now: Coded) -> Callable[[Tensor], Tensor]:
    """The solution of each entry's own equations  x P = r,  P = sum of s_i^2 G_jj over the groups j of rows i that name it."""
    _, entries, size = now.codebooks.shape
    groups = now.codes.shape[1]
    blocks = gram.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).reshape(groups, size * size)
    places = now.codes.long() * groups + torch.arange(groups, device=gram.device)[:, None]
    mass = now.scale.square().expand(-1, groups).reshape(-1, 1)
    counts = torch.stack([sums(mass, column.flatten(), entries * groups) for column in places.unbind(2)])
    own = (counts.view(-1, groups) @ blocks).view(-1, size, size)
    own.diagonal(dim1=1, dim2=2).add_(RIDGE * own.diagonal(dim1=1, dim2=2).mean() + torch.finfo(gram.dtype).tiny)
    factor = torch.linalg.cholesky(own)
    return lambda rest: torch.cholesky_solve(rest.view(-1, size, 1), factor).view_as(rest)


def _gather(values: Float[Tensor, "out in"], now: Coded) -> Float[Tensor, "m k d"]:
    """The sum of the groups of `values` that name each entry."""
    _, entries, size = now.codebooks.shape
    groups = values.reshape(-1, size)
    return torch.stack([sums(groups, column.flatten(), entries) for column in now.codes.long().unbind(2)])
