"""The loss of a matrix over two directions in which each of its rows can move: a scale and an offset, or two numbers that make them.

    x and y of directions d and e add  x^2 d C d^T + 2 x y d C e^T + y^2 e C e^T - 2 x r d^T - 2 y r e^T  to  tr((W - V) G (W - V)^T)

C = G of the inputs that move, r = (W - V) G of the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plane:
    """The loss over two directions of each row: what x of the one and y of the other add to it."""

    first: Float[Tensor, "out"]
    mixed: Float[Tensor, "out"]
    second: Float[Tensor, "out"]
    pull_first: Float[Tensor, "out"]
    pull_second: Float[Tensor, "out"]

    @classmethod
    def of(cls, weight: Tensor, values: Tensor, gram: Tensor, columns: slice, one: Tensor, other: Tensor) -> Plane:
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


def solve_pair(first: Tensor, mixed: Tensor, second: Tensor, pull_first: Tensor, pull_second: Tensor) -> tuple[Tensor, Tensor]:
    """The least value of  first x^2 + 2 mixed x y + second y^2 - 2 pull_first x - 2 pull_second y;  the least along one axis, 0 along the
    other, where both are one direction."""
    spread = first * second - mixed.square()
    sound = spread > 1e-6 * first * second
    spread = torch.where(sound, spread, 1.0)
    alone = torch.where(first > 0, pull_first / torch.where(first > 0, first, 1.0), 0.0)
    one = torch.where(sound, (second * pull_first - mixed * pull_second) / spread, alone)
    other = torch.where(sound, (first * pull_second - mixed * pull_first) / spread, 0.0)
    return one, other
