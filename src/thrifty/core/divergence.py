"""How far one distribution over a vocabulary is from another, from logits, token by token, in nats.

    M = beta P + (1 - beta) S
    JSD_beta(P, S) = beta KL(P || M) + (1 - beta) KL(S || M),   0 < beta < 1

At most the entropy of beta; JSD_beta(P, S) = JSD_{1 - beta}(S, P). Over beta it goes to KL(P || S) as beta goes to 0, and over 1 - beta to
KL(S || P) as beta goes to 1: these two stand for the ends.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def jensen_shannon(
    reference: Float[Tensor, "*tokens vocabulary"], found: Float[Tensor, "*tokens vocabulary"], beta: float
) -> Float[Tensor, "*tokens"]:
    """The divergence of `found` (S) from `reference` (P), both logits; computed in float32 and differentiable in both."""
    first, second = (logits.to(torch.float32).log_softmax(-1) for logits in (reference, found))
    if beta == 0:
        return _kl(first, second)
    if beta == 1:
        return _kl(second, first)
    middle = torch.logaddexp(first + math.log(beta), second + math.log(1 - beta))
    return beta * _kl(first, middle) + (1 - beta) * _kl(second, middle)


def _kl(first: Float[Tensor, "*tokens n"], second: Float[Tensor, "*tokens n"]) -> Float[Tensor, "*tokens"]:
    """KL(first || second) of log-probabilities."""
    return (first.exp() * (first - second)).sum(-1)
