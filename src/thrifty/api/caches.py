"""The cache of keys and values that a program hands to `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.cache.base import PackedCache
from thrifty.cache.build import KeyValueCache, build_cache
from thrifty.cache.layer import PackedLayer
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.settings import parse_method

__all__ = ["cache_method", "kv_cache", "noted_cache"]


def kv_cache(model: PreTrainedModel, method: str | Mapping[str, Any] | PackedCache = "kivi") -> KeyValueCache:
    """An empty cache for `model.generate(..., past_key_values=cache)`, or for calls of the model, in which old tokens take fewer bits.

    method: of the family `cache`, as "kivi", "kivi: {bits: 4}", {"kivi": {"bits": 4}} or KIVI(bits=4). `cache.nbytes` are the bytes that it
    holds, `cache.plain_nbytes` those of transformers' own for the same tokens. A cache is of one text: make another for the next, or
    `reset()` it. Raises InputError for a model that keeps no keys and values, a method that there is not, and settings that do not fit it.
    """
    chosen = cache_method(method)
    config = getattr(model, "config", None)
    if config is None or not callable(getattr(model, "can_generate", None)):
        raise InputError(f"a cache is made for a model of transformers; got {type(model).__name__}")
    if not model.can_generate():
        raise InputError(f"a {config.model_type} ({type(model).__name__}) does not generate, so it keeps no keys and values of past tokens")
    return noted_cache(config, chosen)


def noted_cache(config: PretrainedConfig, method: PackedCache) -> KeyValueCache:
    """`build_cache`, with a note where nothing is packed in it."""
    cache = build_cache(config, method)
    if not any(isinstance(layer, PackedLayer) for layer in cache.layers):
        events.note(f"no layer of this {config.model_type} keeps all tokens, so {method.name} packs nothing")
    return cache


def cache_method(method: str | Mapping[str, Any] | PackedCache) -> PackedCache:
    """The method that `method` names, with its settings. Raises InputError naming the nearest, or the setting and its constraint."""
    load_methods()
    found = parse_method(method, PackedCache, "cache")
    assert isinstance(found, PackedCache)
    return found
