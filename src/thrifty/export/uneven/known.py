"""The architectures whose layers may differ in width, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Architecture:
    """What differs from an architecture whose layers take all their sizes from the config.

    heads: attributes of a layer that hold its number of heads, or (True) that times their width.
    sizes: the usual name of a size -> its own.
    """

    heads: Mapping[str, bool] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)


ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi"), Architecture()),
    **dict.fromkeys(("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "mamba", "mamba2", "vit"), Architecture()),
    "gpt2": Architecture({"attn.num_heads": False, "attn.split_size": True}, {"intermediate_size": "n_inner"}),
    "opt": Architecture({"self_attn.num_heads": False}, {"intermediate_size": "ffn_dim"}),
    "bert": Architecture({"attention.self.num_attention_heads": False, "attention.self.all_head_size": True}),
}
"""By model type of transformers."""
