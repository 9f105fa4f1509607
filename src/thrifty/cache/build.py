"""The cache of a model, layer by layer as transformers has it, with those packed that keep every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from thrifty.base.errors import InputError
from thrifty.cache.base import PackedCache
from thrifty.cache.layer import PackedLayer


class KeyValueCache(Cache):
    """A cache for `generate(past_key_values=...)` that knows its size."""

    @property
    def nbytes(self) -> int:
        """Bytes held, packed and plain."""
        return sum(layer.nbytes if isinstance(layer, PackedLayer) else _state_bytes(layer) for layer in self.layers)

    @property
    def plain_nbytes(self) -> int:
        """Bytes that transformers' own cache takes for the same tokens."""
        return sum(layer.plain_nbytes if isinstance(layer, PackedLayer) else _state_bytes(layer) for layer in self.layers)


def build_cache(config: PretrainedConfig, method: PackedCache) -> KeyValueCache:
    """An empty cache for a model with this config.

    Layers whose attention reaches all tokens are packed; others (sliding windows, recurrent states, layers that share another's keys) keep
    transformers' own. Raises InputError for a model that keeps no keys and values, and for heads that `method` cannot pack.
    """
    what = f"a {config.model_type}"
    if config.is_encoder_decoder:
        raise InputError(f"{what} keeps two caches, of what it wrote and of what it read; a packed one is there for decoders alone")
    text = config.get_text_config(decoder=True)
    if not hasattr(text, "num_attention_heads"):
        raise InputError(f"{what} has no attention heads, so there are no keys and values to pack")
    layers = DynamicCache(config=text).layers
    if not any(isinstance(layer, CacheLayerMixin) for layer in layers):
        raise InputError(f"{what} keeps a state of fixed size, no keys and values of past tokens, so there is nothing to pack")
    packed = [PackedLayer(method) if type(layer) is DynamicLayer else layer for layer in layers]
    if any(isinstance(layer, PackedLayer) for layer in packed):
        method.check(*_head_sizes(text))
    return KeyValueCache(layers=packed)


def _head_sizes(config: PretrainedConfig) -> tuple[int, int]:
    """(of keys, of values) as the config has them; a layer checks its own again at its first token."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size, getattr(config, "v_head_dim", None) or size


def _state_bytes(layer: Any) -> int:
    """Bytes of what a layer of transformers keeps of tokens: keys and values, and states by number."""
    return sum(_tensor_bytes(value) for name, value in vars(layer).items() if not name.startswith("_"))


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(_tensor_bytes(item) for item in value.values()) if isinstance(value, Mapping) else 0
