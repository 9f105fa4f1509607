"""K-quants fitted to what a matrix does, with the codes of its entries left as they are.

    min over D, E, k and m of  tr((W - V) G (W - V)^T),    v_ij = (D k_g) q_ij - E m_g

For one group, the others as they are, the loss is a quadratic in its step and its offset; for one block, in D and E. The multiples, or the
float16 numbers, beside its lowest point are tried, and the best of them takes the place of what was there if it costs less. So no step
raises the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.grids import grouped
from thrifty.core.k_quants import BLOCK, Form, Steps, block_pair, codes_of, multiples, solve_pair, values_of

Pair = tuple[Tensor, Tensor]


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
        _refit_group(_Plane.of(weight, values, gram, columns, own, -torch.ones_like(own)), steps, group, group // per_block, form)
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


@dataclass(frozen=True)
class _Plane:
    """The loss over two directions of each row: what x of the one and y of the other add to it."""

    first: Float[Tensor, "out"]
    mixed: Float[Tensor, "out"]
    second: Float[Tensor, "out"]
    pull_first: Float[Tensor, "out"]
    pull_second: Float[Tensor, "out"]

    @classmethod
    def of(cls, weight: Tensor, values: Tensor, gram: Tensor, columns: slice, one: Tensor, other: Tensor) -> _Plane:
        slope, dot = (weight - values) @ gram[:, columns], torch.linalg.vecdot
        curved = one @ gram[columns, columns]
        crossed = other @ gram[columns, columns]
        return cls(dot(curved, one), dot(curved, other), dot(crossed, other), dot(slope, one), dot(slope, other))

    def lowest(self) -> Pair:
        """The x and y of the least loss."""
        return solve_pair(self.first, self.mixed, self.second, self.pull_first, self.pull_second)

    def aside(self, along: Tensor) -> Tensor:
        """The best y for this x."""
        held = self.second > 0
        return torch.where(held, (self.pull_second - self.mixed * along) / torch.where(held, self.second, 1.0), 0.0)

    def along(self) -> Tensor:
        """The best x for y = 0."""
        held = self.first > 0
        return torch.where(held, self.pull_first / torch.where(held, self.first, 1.0), 0.0)

    def added(self, along: Tensor, aside: Tensor) -> Tensor:
        """What the loss changes by."""
        own = along * (along * self.first - 2 * self.pull_first + 2 * aside * self.mixed)
        return own + aside * (aside * self.second - 2 * self.pull_second)

    def best(self, now: Pair, tried: Iterable[Pair], units: Pair | None = None) -> Pair:
        """Of several pairs the one that lowers the loss most, `now` where none does; units: what they are multiples of."""
        one, other = units or (1.0, 1.0)
        found, least = now, torch.zeros_like(self.first)
        for pair in tried:
            added = self.added((one * pair[0] - one * now[0]).to(least), (other * pair[1] - other * now[1]).to(least))
            less = added < least
            least = torch.where(less, added, least)
            found = torch.where(less, pair[0], found[0]), torch.where(less, pair[1], found[1])
        return found


def _refit_group(plane: _Plane, steps: Steps, group: int, block: int, form: Form) -> None:
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
    plane = _Plane.of(weight, values, gram, columns, along, aside)
    now = steps.block_scale[:, block], steps.block_minimum[:, block]
    nothing = torch.zeros_like(plane.first)
    moves = (plane.lowest(), (plane.along(), nothing), (nothing, plane.aside(nothing))) if form.minimum else ((plane.along(), nothing),)
    tried = [block_pair(now[0] + move[0], now[1] + move[1], form) for move in moves]
    steps.block_scale[:, block], steps.block_minimum[:, block] = plane.best(now, tried)
    _write(values, codes, steps, block, form)
