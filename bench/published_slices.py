"""SliceGPT with a rotation for each norm, as published, of a Llama in plain torch: what one rotation for the whole model is held against.

What enters norm number l is z_l = Q_l^T h, Q_l [D, D'] the first principal directions of what arrives there on calibration rows, found one
after the other in what is cut already. A skip connection is multiplied by Q_l^T Q_(l+1), [D', D'], before each norm but the first. Here h
is kept at its full width as Q_l z_l, which is the same: a norm divides by the same length, and what is read and added is the same.

Source: Ashkboos, Croci, do Nascimento, Hoefler and Hensman (2024), arXiv 2401.15024.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.slicing import principal


def width(hidden: int, parameters: int, shell: int, tied: bool, blocks: int, wanted: float) -> int:
    """The most channels with which no more parameters are left than wanted. All of the model gets narrower in proportion, a head that was
    shared stands by itself, and each block has two skip connections; vectors are not counted."""

    def left(kept: int) -> float:
        return (parameters + tied * shell) * kept / hidden + 2 * blocks * kept**2

    return max(kept for kept in range(1, hidden + 1) if left(kept) <= wanted)


@dataclass
class Sliced:
    """A Llama of transformers with `kept` channels between its norms. directions: Q_l of each norm, in the order of the forward pass; found
    by the first call."""

    model: torch.nn.Module
    kept: int
    directions: list[Float[Tensor, "width kept"]] = field(default_factory=list)
    _place: int = field(default=0, init=False)

    @torch.inference_mode()
    def logits(self, tokens: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length vocabulary"]:
        """What it says of these windows."""
        inner, self._place = self.model.model, 0
        hidden = inner.embed_tokens(tokens)
        length = tokens.shape[1]
        positions = inner.rotary_emb(hidden, position_ids=torch.arange(length)[None])
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        for layer in inner.layers:
            hidden = self._cut(hidden)
            reads = layer.input_layernorm(hidden)
            hidden = hidden + layer.self_attn(hidden_states=reads, position_embeddings=positions, attention_mask=mask)[0]
            hidden = self._cut(hidden)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.model.lm_head(inner.norm(self._cut(hidden)))

    def _cut(self, hidden: Float[Tensor, "rows length width"]) -> Float[Tensor, "rows length width"]:
        """What is left of hidden states at the next norm."""
        rows = hidden.flatten(0, 1).to(torch.float64)
        if len(self.directions) == self._place:
            self.directions.append(principal(rows.T @ rows, self.kept))
        directions = self.directions[self._place]
        self._place += 1
        return (rows @ directions @ directions.T).to(hidden.dtype).reshape(hidden.shape)
