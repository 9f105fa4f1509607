"""What both models write when they go on by themselves: a short task that shows damage which single predictions hide.

    same_continuation = mean over prompts of  (new tokens before the first one that differs) / (new tokens)

Both go on greedily from the same prompts. One token that differs changes all that follow, so this falls long before perplexity rises.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from thrifty.measure.intervals import Interval, mean_interval
from thrifty.measure.quality import quality_row


def same_continuation(
    before: nn.Module, after: nn.Module, prompts: Int[Tensor, "rows length"], *, new_tokens: int = 32, seed: int = 0
) -> dict[str, Any]:
    """A row of the certificate's `quality`, with an interval over the prompts.

    before, after: models that generate. prompts: token ids of one length, without padding.
    """
    shares = agreeing_share(continued(before, prompts, new_tokens), continued(after, prompts, new_tokens))
    found = mean_interval(shares, seed=seed)
    moved = Interval(*(None if end is None else end - 1 for end in (found.value, found.low, found.high)))
    return quality_row("same_continuation", 1.0, found.value, moved)


def continued(model: nn.Module, prompts: Int[Tensor, "rows length"], new_tokens: int) -> Int[Tensor, "rows new_tokens"]:
    """The tokens that follow each prompt, always the likeliest one; also beyond the end of a text."""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    with torch.inference_mode():
        found = model.generate(input_ids=prompts.to(device), attention_mask=torch.ones_like(prompts, device=device), **settings)
    return found[:, prompts.shape[1] :].cpu()


def agreeing_share(one: Int[Tensor, "rows tokens"], other: Int[Tensor, "rows tokens"]) -> Tensor:
    """Of each row, the share of tokens before the first that differs."""
    return (one == other).to(torch.float64).cumprod(1).mean(1)
