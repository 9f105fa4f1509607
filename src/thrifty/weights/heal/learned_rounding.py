"""Learned rounding: codes and scales of all grids of a block are tuned together by the signs of gradients, against the block's output.

    min over offsets v and stretches a of  mean (block(x; V) - block(x'; W))^2,    V = clamp(round(W / s + v)) s,   s = a s_0
    v <- v - r sign(dL/dv),   a <- a - r sign(dL/da),   r from `rate` to 0,   gradients through `round` as if it were not there

x are the inputs as the compressed blocks before put them out, x' those of the original model, so that a block also makes up for what was
lost before it. Tuning starts at the codes that a solver found: each begins in the place of its cell that is nearest to the weight. Scales
are those that a container holds at every step. The best iterate on some of the rows is kept, the start among them.
Source: Cheng et al. (2023), Optimize Weight Rounding via Signed Gradient Descent, arXiv 2309.05516, which starts at plain rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.base.records import Encoded
from thrifty.core.trainable import Codes, GridWeight
from thrifty.weights.base import Healer, Output, Target
from thrifty.weights.target.affine import Affine
from thrifty.weights.target.int import Int

CHECKS = 10
"""How often the iterates are judged, besides the last one."""

JUDGED = 2
"""Batches that they are judged on."""

NARROWEST, WIDEST = 0.5, 1.5
"""What a scale may become, in parts of what it was."""


@dataclass(frozen=True)
class LearnedRounding(Healer):
    """iterations: steps. batch: rows of each. rate: length of the first step (none: 1 / iterations)."""

    name: ClassVar[str] = "learned_rounding"
    paper: ClassVar[Paper] = Paper(
        "Cheng et al.", 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", "2309.05516"
    )

    iterations: Annotated[int, Field(ge=1, le=100_000)] = 200
    batch: Annotated[int, Field(ge=1)] = 8
    rate: Annotated[float, Field(gt=0, le=1)] | None = None

    def accepts(self, target: Target) -> None:
        if not isinstance(target, Int | Affine):
            raise InputError(
                f"learned_rounding tunes evenly spaced grids, as in {{int: {{bits: 2}}}} or {{affine: {{bits: 2}}}}; got {target.name}"
            )

    @property
    def row_passes(self) -> float:
        return self.batch * (3.0 * self.iterations + JUDGED * (CHECKS + 1))

    def heal(
        self,
        starts: Mapping[str, tuple[Float[Tensor, "out in"], Encoded]],
        output: Output,
        rows: Float[Tensor, "rows *length width"],
        expected: Float[Tensor, "rows *length width"],
        seed: int,
    ) -> tuple[dict[str, Encoded], dict[str, float]]:
        grids = {path: GridWeight(weight, encoded, _codes(encoded)) for path, (weight, encoded) in starts.items()}
        parameters = [tensor for grid in grids.values() for tensor in (grid.offset, grid.stretch)]
        order = torch.Generator().manual_seed(seed)
        judged = torch.randperm(len(rows), generator=order)[: JUDGED * self.batch].split(self.batch)

        def loss(chosen: Tensor) -> Tensor:
            found = output({path: grid.values() for path, grid in grids.items()}, rows[chosen])
            return (found.to(torch.float32) - expected[chosen].to(found.device, torch.float32)).square().mean()

        def judge() -> float:
            with torch.no_grad():
                return sum(float(loss(part)) * len(part) for part in judged) / sum(map(len, judged))

        first = least = judge()
        best = [tensor.detach().clone() for tensor in parameters]
        for step in range(self.iterations):
            chosen = torch.randperm(len(rows), generator=order)[: self.batch]
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss(chosen), parameters, allow_unused=True)
            rate = (self.rate or 1 / self.iterations) * (1 - step / self.iterations)
            with torch.no_grad():
                for tensor, slope in zip(parameters, slopes, strict=True):
                    if slope is not None:  # an expert that none of these rows reached
                        tensor.sub_(slope.sign(), alpha=rate)
                for grid in grids.values():
                    grid.stretch.clamp_(NARROWEST, WIDEST)
            if (step + 1) % max(1, self.iterations // CHECKS) == 0 or step + 1 == self.iterations:
                now = judge()
                if now < least:
                    least, best = now, [tensor.detach().clone() for tensor in parameters]
        with torch.no_grad():
            for tensor, kept in zip(parameters, best, strict=True):
                tensor.copy_(kept)
            return {path: grid.encoded() for path, grid in grids.items()}, {"block_error_before": first, "block_error": least}


def _codes(encoded: Encoded) -> Codes:
    return Codes.of_integers(round(2**encoded.bits), "zero_point" not in encoded.tensors)
