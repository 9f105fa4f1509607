"""K-quants fitted to what a matrix does, with the codes of its entries left as they are.

    min over D, E, k and m of  tr((W - V) G (W - V)^T),    v_ij = (D k_g) q_ij - E m_g

For one group, the others as they are, the loss is a quadratic in its step and its offset; for one block, in D and E. The multiples, or the
float16 numbers, beside its lowest point are tried, and the best of them takes the place of what was there if it costs less. So no step
raises the loss.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.grids import grouped
from thrifty.core.k_quants import BLOCK, Form, Steps, block_pair, codes_of, multiples, values_of
from thrifty.core.plane import Pair, Plane


def refit_steps(
    weight: Float[Tensor, "out in"], values: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], steps: Steps, form: Form
) -> tuple[Steps, Float[Tensor, "out in"]]:
    """(the new steps, the values that the codes of `values` have with them)."""
    codes = codes_of(grouped(values, form.group_size), steps, form)
    steps = Steps(*(part.clone() for part in (steps.block_scale, steps.scale, steps.block_minimum, steps.minimum)))
    values = values.clone()
    size, per_block = form.group_size, BLOCK // form.group_size
    for group in range(steps.scale.shape[1]):
        columns = slice(group * size, (group + 1) * size)
        own = codes[:, group]
        _refit_group(Plane.of(weight, values, gram, columns, own, -torch.ones_like(own)), steps, group, group // per_block, form)
        _write(values, codes, steps, group // per_block, form)
        if (group + 1) % per_block == 0:
            _refit_block(weight, values, gram, codes, steps, group // per_block, form)
    return steps, values


def _write(values: Tensor, codes: Tensor, steps: Steps, block: int, form: Form) -> None:
    """The values of a block whose steps have changed."""
    groups = slice(block * BLOCK // form.group_size, (block + 1) * BLOCK // form.group_size)
    own = Steps(
        steps.block_scale[:, block : block + 1],
        steps.scale[:, groups],
        steps.block_minimum[:, block : block + 1],
        steps.minimum[:, groups],
    )
    values[:, block * BLOCK : (block + 1) * BLOCK] = values_of(codes[:, groups], own).flatten(1).to(values)


def _refit_group(plane: Plane, steps: Steps, group: int, block: int, form: Form) -> None:
    now = steps.scale[:, group], steps.minimum[:, group]
    units = steps.block_scale[:, block], steps.block_minimum[:, block]
    step, offset = units[0] * now[0], units[1] * now[1]
    along = plane.lowest()[0] if form.minimum else plane.along()
    near = multiples(step + along, units[0], form.least, form.most)

    def tried() -> Iterable[Pair]:
        for scale in (now[0], near, near - 1, near + 1):
            scale = scale.clamp(form.least, form.most)
            if form.minimum:
                aside = plane.aside((units[0] * scale - step).to(plane.first))
                yield scale, multiples(offset + aside, units[1], 0, form.most)
            else:
                yield scale, now[1]

    steps.scale[:, group], steps.minimum[:, group] = plane.best(now, tried(), units)


def _refit_block(weight: Tensor, values: Tensor, gram: Tensor, codes: Tensor, steps: Steps, block: int, form: Form) -> None:
    columns = slice(block * BLOCK, (block + 1) * BLOCK)
    groups = slice(block * BLOCK // form.group_size, (block + 1) * BLOCK // form.group_size)
    own = codes[:, groups]
    along = (own * steps.scale[:, groups, None]).flatten(1)
    aside = -steps.minimum[:, groups, None].expand_as(own).flatten(1).to(along)
    plane = Plane.of(weight, values, gram, columns, along, aside)
    now = steps.block_scale[:, block], steps.block_minimum[:, block]
    nothing = torch.zeros_like(plane.first)
    moves = (plane.lowest(), (plane.along(), nothing), (nothing, plane.aside(nothing))) if form.minimum else ((plane.along(), nothing),)
    tried = [block_pair(now[0] + move[0], now[1] + move[1], form) for move in moves]
    steps.block_scale[:, block], steps.block_minimum[:, block] = plane.best(now, tried)
    _write(values, codes, steps, block, form)
