"""What is seen of a model: its answers, what it would begin them with, and its hidden states where the answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.base import events

NEW_TOKENS = 128


@dataclass(frozen=True)
class Seen:
    """Of one model: the tokens of its answers, by request; log-probabilities of the first token; and the hidden states of the last token
    before it, after each layer."""

    answers: list[Int[Tensor, "tokens"]]
    first: Float[Tensor, "requests vocabulary"]
    states: Float[Tensor, "layers requests width"]


def observe(model: nn.Module, requests: Sequence[Int[Tensor, "length"]], new_tokens: int = NEW_TOKENS, title: str = "answers") -> Seen:
    """Let a model answer each request by itself, greedily; nothing is padded, so nothing but the request decides."""
    answers, first, states = [], [], []
    device = _device(model)
    with torch.inference_mode(), events.task(title, len(requests)) as advance:
        for done, request in enumerate(requests, 1):
            ids = request[None].to(device)
            out = model(input_ids=ids, output_hidden_states=True)
            first.append(out.logits[0, -1].to("cpu", torch.float32).log_softmax(-1))
            states.append(torch.stack([hidden[0, -1].to("cpu", torch.float32) for hidden in out.hidden_states[1:]]))
            settings = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
            found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
            answers.append(found[0, len(request) :].cpu())
            advance(done, "")
    return Seen(answers, torch.stack(first), torch.stack(states, dim=1))


def following(model: nn.Module, request: Int[Tensor, "length"], answer: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens vocabulary"]:
    """Log-probabilities of every token of a given answer."""
    ids = torch.cat([request, answer])[None].to(_device(model))
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(request) - 1 : -1]
    return logits.to("cpu", torch.float32).log_softmax(-1)


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
