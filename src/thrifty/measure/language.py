"""What a language model lost, token by token: perplexity, KL divergence, agreement and flips, both models on the same tokens.

Scores are sums over a window and stream in batch by batch; only the sums are kept. With p the original's distribution of the next token
and q the compressed model's:

    perplexity = exp(sum nll / sum tokens)      kl = mean of sum_v p(v) (ln p(v) - ln q(v)), in nats a token
    top1_agreement = share of tokens where both have the same most likely token
    flips: tokens that the original's most likely token hit and the compressed model's misses, and the other way round

A window of T tokens scores T - 1 of them, for the first has no context. Masked language models score a seeded random 15 % of the tokens,
each replaced by the mask token (the share of Devlin and others (2018), arXiv 1810.04805; always the mask token, as nothing is trained
here).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.measure.intervals import Interval, mean_interval, perplexity, perplexity_difference, perplexity_ratio
from thrifty.measure.quality import quality_row

IGNORED = -100
MASKED_SHARE = 0.15
_ELEMENTS = 2**19


@dataclass(frozen=True)
class WindowScores:
    """Sums per window, float64 [windows], in the order of the windows.

    tokens: scored tokens. nll_before, nll_after, kl: nats. agreements: equal most likely tokens. right_before, right_after: most likely
    token is the true one. lost: right before and wrong after; gained: wrong before and right after.
    """

    tokens: Float[Tensor, "windows"]
    nll_before: Float[Tensor, "windows"]
    nll_after: Float[Tensor, "windows"]
    kl: Float[Tensor, "windows"]
    agreements: Float[Tensor, "windows"]
    right_before: Float[Tensor, "windows"]
    right_after: Float[Tensor, "windows"]
    lost: Float[Tensor, "windows"]
    gained: Float[Tensor, "windows"]

    @classmethod
    def empty(cls) -> WindowScores:
        """Scores of no window, the neutral element of `merge`."""
        return cls(*(torch.zeros(0, dtype=torch.float64) for _ in fields(cls)))

    def merge(self, other: WindowScores) -> WindowScores:
        """These windows, then those of `other`."""
        return WindowScores(*(torch.cat([getattr(self, field.name), getattr(other, field.name)]) for field in fields(self)))

    @classmethod
    def joined(cls, parts: Iterable[WindowScores]) -> WindowScores:
        """All windows in the order of the parts."""
        parts = list(parts)
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls))) if parts else cls.empty()


def score_windows(
    before: Float[Tensor, "windows length vocabulary"],
    after: Float[Tensor, "windows length vocabulary"],
    targets: Int[Tensor, "windows length"],
) -> WindowScores:
    """Compare the logits of both models.

    targets: the token that each position predicts, -100 where nothing is scored (see `causal_targets`). Logits of any float type; the
    arithmetic is float32 with float64 sums, over half a million logits at a time.
    Raises InputError when the shapes differ, or a target lies outside the vocabulary.
    """
    _check(before, after, targets)
    windows = targets.shape[0]
    window, place = (targets != IGNORED).nonzero(as_tuple=True)
    sums = torch.zeros(len(fields(WindowScores)), windows, dtype=torch.float64)
    step = max(1, _ELEMENTS // before.shape[-1])
    for start in range(0, window.numel(), step):
        rows, columns = window[start : start + step], place[start : start + step]
        scores = _score(before[rows, columns].float(), after[rows, columns].float(), targets[rows, columns])
        sums.index_add_(1, rows.cpu(), scores.cpu())
    return WindowScores(*sums)


def score_one(logits: Float[Tensor, "windows length vocabulary"], targets: Int[Tensor, "windows length"]) -> WindowScores:
    """Scores of one model alone: it stands on both sides, so KL is 0 and agreement 1."""
    return score_windows(logits, logits, targets)


def _check(before: Tensor, after: Tensor, targets: Tensor) -> None:
    if before.shape != after.shape:
        raise InputError(
            f"the two models give logits of different shapes, {list(before.shape)} and {list(after.shape)}; they need the same vocabulary"
        )
    if before.shape[:-1] != targets.shape:
        raise InputError(f"targets of shape {list(targets.shape)} do not fit logits of shape {list(before.shape)}")
    scored = targets[targets != IGNORED]
    if scored.numel() and not 0 <= int(scored.min()) <= int(scored.max()) < before.shape[-1]:
        raise InputError(
            f"token {int(scored.max())} lies outside the model's vocabulary of {before.shape[-1]}; is it the model's own tokenizer?"
        )


def _score(before: Tensor, after: Tensor, targets: Tensor) -> Float[Tensor, "figures tokens"]:
    """The fields of WindowScores for each token: logits [tokens, vocabulary] float32, targets [tokens]."""
    best_before, shifted_before, weights, log_sum_before = _normalise(before)
    best_after, shifted_after, _, log_sum_after = _normalise(after)
    # The normalisers are taken out of the sum and kept in float64: their rounding would shift every term alike.
    # A token that both models rule out gives inf - inf at weight 0; the limit of p ln p is 0, hence nansum.
    terms = weights.mul_(shifted_before - shifted_after)
    kl = terms.nansum(-1, dtype=torch.float64) / log_sum_before.exp() - log_sum_before + log_sum_after
    right_before, right_after = best_before == targets, best_after == targets
    figures = (
        torch.ones_like(kl),
        log_sum_before - shifted_before.gather(-1, targets[:, None])[:, 0],
        log_sum_after - shifted_after.gather(-1, targets[:, None])[:, 0],
        torch.where(kl < 0, 0.0, kl),
        best_before == best_after,
        right_before,
        right_after,
        right_before & ~right_after,
        right_after & ~right_before,
    )
    return torch.stack([figure.to(torch.float64) for figure in figures])


def _normalise(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(most likely token, logits with maximum 0, their exponentials, log of the sum of these in float64 [tokens])."""
    highest, best = logits.max(-1, keepdim=True)
    shifted = logits - highest
    weights = shifted.exp()
    return best[:, 0], shifted, weights, weights.sum(-1, dtype=torch.float64).log()


# -- what is scored ----------------------------------------------------------------------------------------------------


def causal_targets(
    tokens: Int[Tensor, "windows length"], attention_mask: Int[Tensor, "windows length"] | None = None
) -> Int[Tensor, "windows length"]:
    """Position i predicts token i + 1; the last position, and padding, predict nothing. T tokens score T - 1."""
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:]
    if attention_mask is not None:
        real = attention_mask.bool()
        targets[:, :-1][~(real[:, 1:] & real[:, :-1])] = IGNORED
    return targets


# -- the verdict -------------------------------------------------------------------------------------------------------


def summarise(scores: WindowScores, *, seed: int = 0) -> dict[str, Any]:
    """The scores in figures, each with its interval over windows, as plain JSON values.

    Keys: windows, tokens, perplexity {before, after}, perplexity_ratio, kl, top1_agreement, flips {right_to_wrong, wrong_to_right},
    quality (rows of the certificate).
    Raises InputError when no token was scored.
    """
    _need_tokens(scores)
    tokens = scores.tokens
    before, after = perplexity(scores.nll_before, tokens, seed=seed), perplexity(scores.nll_after, tokens, seed=seed)
    ratio = perplexity_ratio(scores.nll_before, scores.nll_after, tokens, seed=seed)
    kl = mean_interval(scores.kl, tokens, seed=seed)
    agreement = mean_interval(scores.agreements, tokens, seed=seed)
    accuracy = [float(right.sum() / tokens.sum()) for right in (scores.right_before, scores.right_after)]
    return {
        "windows": int(tokens.numel()),
        "tokens": int(tokens.sum()),
        "perplexity": {"before": before.to_json(), "after": after.to_json()},
        "perplexity_ratio": ratio.to_json(),
        "kl": kl.to_json(),
        "top1_agreement": agreement.value,
        "flips": {"right_to_wrong": int(scores.lost.sum()), "wrong_to_right": int(scores.gained.sum())},
        "quality": [
            quality_row(
                "perplexity",
                before.value,
                after.value,
                perplexity_difference(scores.nll_before, scores.nll_after, tokens, seed=seed),
            ),
            quality_row("perplexity_ratio", 1.0, ratio.value, _moved(ratio, -1.0)),
            quality_row("kl", 0.0, kl.value, kl),
            quality_row("top1_agreement", 1.0, agreement.value, _moved(agreement, -1.0)),
            quality_row("next_token_accuracy", *accuracy, mean_interval(scores.right_after - scores.right_before, tokens, seed=seed)),
        ],
    }


def summarise_one(scores: WindowScores, *, seed: int = 0) -> dict[str, Any]:
    """Figures of one model alone (see `score_one`): windows, tokens, perplexity, next_token_accuracy."""
    _need_tokens(scores)
    return {
        "windows": int(scores.tokens.numel()),
        "tokens": int(scores.tokens.sum()),
        "perplexity": perplexity(scores.nll_before, scores.tokens, seed=seed).to_json(),
        "next_token_accuracy": mean_interval(scores.right_before, scores.tokens, seed=seed).to_json(),
    }


def _need_tokens(scores: WindowScores) -> None:
    if not scores.tokens.numel() or not float(scores.tokens.sum()):
        raise InputError("no token was scored; the text to measure on needs windows of at least 2 tokens")


def _moved(interval: Interval, shift: float) -> Interval:
    low, high = (None if end is None else end + shift for end in (interval.low, interval.high))
    return Interval(interval.value + shift, low, high)
