"""Scales and offsets fitted to what a matrix does, with the codes of its entries left as they are: `core.refit` for `core.affine_grids`.

    min over the scales s and offsets o of  tr((W - V) G (W - V)^T),    v_ij = c_ij s_ig + o_ig,   input j in group g

For one group, the others as they are, the loss is a quadratic in both. Of what a container holds, the scale nearest to its lowest point is
tried with the best offset beside it, and the best offset beside the scale that is there; the better of these takes the place of what was
there if it costs less. So no step raises the loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.affine_grids import SCALE_BITS, Line, snap_offset
from thrifty.core.grids import snap_scale
from thrifty.core.plane import Pair, Plane


def refit_line(
    weight: Float[Tensor, "out in"], values: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], line: Line
) -> tuple[Line, Float[Tensor, "out in"]]:
    """(the new scales and offsets, the values that the codes of `values` have with them)."""
    values, scale, offset = values.clone(), line.scale.clone(), line.offset.clone()
    size = values.shape[1] // scale.shape[1]
    for group in range(scale.shape[1]):
        columns, now = slice(group * size, (group + 1) * size), (scale[:, group], offset[:, group])
        codes = (values[:, columns] - now[1][:, None]) / now[0][:, None]
        plane = Plane.of(weight, values, gram, columns, codes, torch.ones_like(codes))
        scale[:, group], offset[:, group] = plane.best(now, _tried(plane, *now))
        values[:, columns] = (codes * scale[:, group, None]).add_(offset[:, group, None]).add_(0.0)
    return Line(scale, offset), values


def _tried(plane: Plane, scale: Float[Tensor, "out"], offset: Float[Tensor, "out"]) -> Iterator[Pair]:
    """Scales and offsets for each row."""
    wanted = scale + plane.lowest()[0]
    for tried in (snap_scale(torch.where(wanted > 0, wanted, scale), SCALE_BITS), scale):
        yield tried, snap_offset(offset + plane.aside(tried - scale), tried)
