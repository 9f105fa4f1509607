"""What BitCPM's sheet promises of three values in two stages, in a small language drawn from a table.

Source: MiniCPM Team (2025), arXiv 2506.07900.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thrifty.core.trainable import FreeWeight, GridWeight, Trained
from thrifty.train import Schedule, train
from thrifty.weights.target.ternary import Ternary

SYMBOLS, WIDTH, CONTEXT = 12, 96, 3
SIZES = {"embed": (SYMBOLS, 16), "first": (WIDTH, CONTEXT * 16), "second": (WIDTH, WIDTH), "head": (SYMBOLS, WIDTH)}
INNER = ("first", "second")
"""What gets three values: embeddings and head stay as they are."""
STEPS, BATCH, RATE, SECOND = 1000, 64, 0.1, 0.4
"""Steps of both stages together, and the share of the second; it starts at half of the rate of the first."""


@dataclass
class Language:
    """A network that says the next symbol from the last ones; each follows from the two before it, by a drawn table."""

    matrices: dict[str, Trained]
    tokens: Tensor

    @classmethod
    def text(cls, seed: int, length: int) -> Tensor:
        """Windows [length, CONTEXT + 1] of the language; others for each seed."""
        table = torch.softmax(2.5 * torch.randn(SYMBOLS, SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(99)), -1)
        draws, said = torch.rand(length + CONTEXT, generator=torch.Generator().manual_seed(seed)), [0, 1]
        edges = table.cumsum(-1)
        for draw in draws:
            said.append(min(SYMBOLS - 1, int((edges[said[-2], said[-1]] < draw).sum())))
        return torch.tensor(said).unfold(0, CONTEXT + 1, 1)

    def parameters(self) -> Mapping[str, Tensor]:
        return {f"{name}.{part}": tensor for name, one in self.matrices.items() for part, tensor in one.parameters.items()}

    def loss(self, rows: Tensor) -> Tensor:
        return self.of(self.tokens[rows])

    def of(self, windows: Tensor) -> Tensor:
        values = {name: one.values() for name, one in self.matrices.items()}
        hidden = values["embed"][windows[:, :-1]].flatten(1)
        for name in INNER:
            hidden = functional.gelu(functional.rms_norm(hidden, hidden.shape[-1:]) @ values[name].T)
        return functional.cross_entropy(hidden @ values["head"].T, windows[:, -1])

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def settle(self) -> Mapping[str, Tensor]:
        for one in self.matrices.values():
            one.settle()
        return {}


def started(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(out, into, generator=generator) / into**0.5 for name, (out, into) in SIZES.items()}


def three_valued(weights: Mapping[str, Tensor]) -> dict[str, Trained]:
    target = Ternary(range="absmean")
    found: dict[str, Trained] = {}
    for name, weight in weights.items():
        found[name] = GridWeight(weight, target.fit(weight).encode(weight), target.codes) if name in INNER else FreeWeight(weight)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_two_stages_beat_three_values_from_the_first_step_and_rounding_afterwards(tmp_path: Path, seed: int) -> None:
    tokens, held_out = Language.text(seed, 20_000), Language.text(1000 + seed, 2000)

    def trained(matrices: dict[str, Trained], share: float, rate: float, name: str) -> dict[str, Tensor]:
        network = Language(matrices, tokens)
        train(network, len(tokens), Schedule(round(share * STEPS), BATCH, rate), tmp_path / name, seed)
        return {name: one.values().detach() for name, one in matrices.items()}

    def judged(matrices: dict[str, Trained]) -> float:
        with torch.no_grad():
            return float(Language(matrices, tokens).of(held_out))

    scratch = three_valued(started(seed))
    trained(scratch, 1.0, RATE, "scratch")
    dense = trained({name: FreeWeight(weight) for name, weight in started(seed).items()}, 1 - SECOND, RATE, "first")
    both = three_valued(dense)
    rounded = judged(both)
    trained(both, SECOND, RATE / 2, "second")
    assert judged(both) < judged(scratch)
    assert judged(both) < rounded - 0.1
