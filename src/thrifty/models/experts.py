"""A mixture of experts as plain linears.

transformers 5 keeps all experts of a block in two 3-D parameters. Here every expert is a module of ordinary linears with the same forward
signature, so that a hook on one of them sees exactly the tokens that were routed to it, and each matrix can be replaced on its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Expert(nn.Module):
    """One gated expert: down(activation(gate(x)) * up(x))."""

    def __init__(self, hidden: int, inner: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False, device="meta")
        self.up_proj = nn.Linear(hidden, inner, bias=False, device="meta")
        self.down_proj = nn.Linear(inner, hidden, bias=False, device="meta")
        self.act_fn = activation

    def forward(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))

    def neurons(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens inner"]:
        """What `down_proj` would read of these tokens. Hooks are not called: nobody routed the tokens here."""
        with torch.no_grad():
            return self.act_fn(self.gate_proj.forward(hidden)) * self.up_proj.forward(hidden)


class Experts(nn.ModuleList):
    """All experts of a block; stands in for the module that holds them as 3-D parameters."""

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens chosen"],
        top_k_weights: Float[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens hidden"]:
        """The weighted sum of what the chosen experts make of each token. Experts that no token chose are not called."""
        total = torch.zeros_like(hidden_states)
        if total.is_meta:  # no values to choose by, so that each gets as many tokens as the others
            share = -(-top_k_index.numel() // len(self))
            for expert in self:
                expert(hidden_states.new_empty(share, hidden_states.shape[1]))
            return total
        for index, expert in enumerate(self):
            token, position = torch.where(top_k_index == index)
            if token.numel():
                out = expert(hidden_states[token]) * top_k_weights[token, position, None]
                total.index_add_(0, token, out.to(total.dtype))
        return total


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds gated experts as `gate_up_proj` [experts, 2 inner, hidden] and `down_proj` [experts, hidden, inner]."""
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(gate_up, nn.Parameter) or not isinstance(down, nn.Parameter) or gate_up.ndim != 3 or down.ndim != 3:
        return False
    plain = getattr(module, "is_concatenated", True) and getattr(module, "has_gate", True)
    special = any(getattr(module, name, False) for name in ("is_transposed", "has_bias", "has_post_expert_norm"))
    count, doubled, hidden = gate_up.shape
    return bool(plain) and not special and hasattr(module, "act_fn") and tuple(down.shape) == (count, hidden, doubled // 2)


def unfused(module: nn.Module) -> Experts:
    """Plain linears, on the meta device, for a module that `is_fused`."""
    count, doubled, hidden = module.gate_up_proj.shape
    return Experts(Expert(hidden, doubled // 2, module.act_fn) for _ in range(count))
