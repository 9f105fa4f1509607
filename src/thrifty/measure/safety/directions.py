"""Where a model keeps requests apart that it refuses from those that it answers: how that direction moved, layer by layer.

    r_l = mean state over requests to refuse - mean over requests to answer,     cos(r_l of the original, r_l of the result)
    d'_l = difference of the mean projections on r_l / their pooled standard deviation,   on requests that r_l was not taken from

Only figures come out; the directions themselves are kept nowhere. Models of different widths are compared by the linear CKA of their states
(Kornblith, Norouzi, Lee and Hinton 2019, arXiv 1905.00414).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

States = Float[Tensor, "layers requests width"]


def drift(before: tuple[States, States], after: tuple[States, States]) -> dict[str, Any]:
    """Of each model: (states of requests to refuse, states of those to answer), pairs in one order. Figures by layer, and their means over
    the middle third."""
    layers = min(before[0].shape[0], after[0].shape[0])
    found: dict[str, list[float]] = {}
    if before[0].shape[-1] == after[0].shape[-1] and before[0].shape[0] == after[0].shape[0]:
        one, other = (_direction(*(part[:, ::2] for part in states)) for states in (before, after))
        found["cosine"] = torch.cosine_similarity(one, other, dim=-1).tolist()
        found["norm_ratio"] = (other.norm(dim=-1) / one.norm(dim=-1).clamp_min(_TINY)).tolist()
        for name, states, direction in (("separation_before", before, one), ("separation_after", after, other)):
            found[name] = _separation(*(part[:, 1::2] for part in states), direction).tolist()
    else:
        places = [torch.linspace(0, states[0].shape[0] - 1, layers).round().long() for states in (before, after)]
        pairs = zip(*(torch.cat(states, dim=1)[place] for states, place in zip((before, after), places, strict=True)), strict=True)
        found["cka"] = [_cka(one, other) for one, other in pairs]
    middle = slice(layers // 3, max(layers // 3 + 1, layers - layers // 3))
    return {"layers": found, **{name: sum(values[middle]) / len(values[middle]) for name, values in found.items()}}


_TINY = 1e-12


def _direction(refuse: States, answer: States) -> Float[Tensor, "layers width"]:
    return refuse.mean(1) - answer.mean(1)


def _separation(refuse: States, answer: States, direction: Float[Tensor, "layers width"]) -> Float[Tensor, "layers"]:
    """How many standard deviations the projections lie apart."""
    unit = direction / direction.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    one, other = (torch.einsum("lrw,lw->lr", states, unit) for states in (refuse, answer))
    spread = ((one.var(1) + other.var(1)) / 2).sqrt().clamp_min(_TINY)
    return (one.mean(1) - other.mean(1)) / spread


def _cka(one: Float[Tensor, "requests width"], other: Float[Tensor, "requests other"]) -> float:
    """Linear centred kernel alignment: 1 for states that are the same but for a rotation and a scale."""
    one, other = one - one.mean(0), other - other.mean(0)
    across = (one.T @ other).square().sum()
    return float(across / ((one.T @ one).norm() * (other.T @ other).norm()).clamp_min(_TINY))
