"""The architectures that can be written for llama.cpp, as data: what their graphs there expect, and what they do not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from jaxtyping import Float
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import InputError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """How a model is written.

    graph: llama.cpp's name. rotary_pairs: its graph rotates neighbours, so rows of queries and keys are interleaved. shifted_norms: norm
    weights are kept as 1 + weight. windows: its graph has sliding windows. always_tied: it has no place for an output matrix.
    settings: values of the configuration that the graph is made for; any other is refused. check: further refusals, a reason or None.
    """

    graph: MODEL_ARCH
    rotary_pairs: bool = False
    shifted_norms: bool = False
    windows: bool = False
    always_tied: bool = False
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    check: Callable[[Config], str | None] = lambda config: None


def head_size(config: Config) -> int:
    """Width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def size(config: Config, name: str) -> Any:
    """A size of the layers; where they differ in it, a list with that of each."""
    return (config.get("uneven") or {}).get("sizes", {}).get(name, config.get(name))


def _window_period(config: Config) -> int:
    """One layer in this many sees everything; the others have a sliding window."""
    kinds = config["layer_types"]
    full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    return full[0] + 1 if full else len(kinds) + 1


def _check_period(config: Config) -> str | None:
    period = _window_period(config)
    expected = ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(len(config["layer_types"]))]
    return None if list(config["layer_types"]) == expected else "its layers with a sliding window follow no period"


def _check_query_scale(config: Config, largest: int) -> str | None:
    """largest: layers of the family's largest model, by which llama.cpp knows it: there queries are scaled by another width."""
    given, layers, heads = config["query_pre_attn_scalar"], config["num_hidden_layers"], config["num_attention_heads"]
    width, words = head_size(config), "the width of a head"
    if layers == largest:
        width, words = config["hidden_size"] // heads, f"the hidden size over the heads, as with {layers} layers"
    return None if given == width else f"its queries are scaled by {given} ** -0.5, not by that of {words} ({width})"


def _check_gemma2(config: Config) -> str | None:
    if not config.get("attn_logit_softcapping") or not config.get("final_logit_softcapping"):
        return "it has no soft caps"
    if _window_period(config) != 2 and len(config["layer_types"]) > 1:
        return "its layers do not alternate between a sliding window and full attention"
    return _check_query_scale(config, largest=46) or _check_period(config)


def _check_gemma3(config: Config) -> str | None:
    return _check_query_scale(config, largest=62) or _check_period(config)


_SILU = {"hidden_act": ("silu",)}
_NO_BIAS = {"attention_bias": (False, None)}
_GELU = {"hidden_activation": ("gelu_pytorch_tanh", None), "hidden_act": ("gelu_pytorch_tanh", "gelu", None), **_NO_BIAS}


def _check_pieces(config: Config) -> str | None:
    outline = config["uneven"]
    own = {setting for layer in outline.get("linears", ()) for spec in layer.values() for setting in spec}
    return "it holds more than one matrix where others hold one" if own - {"bias"} or "branches" in outline else None


_BY_LAYER = Architecture(MODEL_ARCH.DECI, rotary_pairs=True, settings=_SILU, check=_check_pieces)
"""Llama with sizes by layer, under the name of the first model that had them (DeciLM)."""

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture(MODEL_ARCH.LLAMA, rotary_pairs=True, settings=_SILU),
    "MistralForCausalLM": Architecture(MODEL_ARCH.LLAMA, rotary_pairs=True, settings=_SILU),
    "UnevenLlamaForCausalLM": _BY_LAYER,
    "UnevenMistralForCausalLM": _BY_LAYER,
    "Qwen2ForCausalLM": Architecture(MODEL_ARCH.QWEN2, settings=_SILU),
    "Qwen3ForCausalLM": Architecture(MODEL_ARCH.QWEN3, settings=_SILU | _NO_BIAS),
    "GemmaForCausalLM": Architecture(MODEL_ARCH.GEMMA, shifted_norms=True, always_tied=True, settings=_GELU),
    "Gemma2ForCausalLM": Architecture(
        MODEL_ARCH.GEMMA2, shifted_norms=True, windows=True, always_tied=True, settings=_GELU, check=_check_gemma2
    ),
    "Gemma3ForCausalLM": Architecture(
        MODEL_ARCH.GEMMA3,
        shifted_norms=True,
        windows=True,
        settings=_GELU | {"attn_logit_softcapping": (None,), "use_bidirectional_attention": (False, None)},
        check=_check_gemma3,
    ),
}
"""By the name of the model class in config.json."""


def architecture_of(config: Config, place: str) -> tuple[str, Architecture]:
    """The architecture that config.json names; InputError when it cannot be written."""
    name = next(iter(config.get("architectures") or ()), "an unnamed architecture")
    if name not in ARCHITECTURES:
        raise InputError(f"{place}: {name} cannot be written to GGUF; it can be done for {', '.join(ARCHITECTURES)}")
    return name, ARCHITECTURES[name]


def check_config(name: str, architecture: Architecture, config: Config, place: str) -> None:
    """Raise InputError for a configuration that llama.cpp's graph would compute otherwise."""
    for setting, allowed in architecture.settings.items():
        if config.get(setting) not in allowed:
            raise InputError(f"{place}: llama.cpp has no {name} with {setting} = {config[setting]!r}; it cannot be written to GGUF")
    reason = architecture.check(config)
    if reason is None and architecture.always_tied and not config.get("tie_word_embeddings", True):
        reason = "its output matrix is not that of the embedding"
    if reason is not None:
        raise InputError(f"{place}: llama.cpp has no such {name}: {reason}; it cannot be written to GGUF")
    kind = rotary(config)["rope_type"]
    if kind not in SCALINGS or (kind == "llama3" and architecture.graph not in (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)):
        raise InputError(f"{place}: rotary scaling of type {kind} cannot be written to GGUF for {name}")
    _check_rotary(rotary(config), f"{place}: rotary scaling of type {kind}")


# -- rotary embedding --------------------------------------------------------------------------------------------------

SCALINGS: Mapping[str, RopeScalingType | None] = {
    "default": None,
    "llama3": None,
    "linear": RopeScalingType.LINEAR,
    "yarn": RopeScalingType.YARN,
}
"""By the name in config.json; `llama3` is written as a tensor of factors."""

_YARN_DEFAULTS = {"attention_factor": None, "beta_fast": 32, "beta_slow": 1, "mscale": None, "mscale_all_dim": None, "truncate": True}


def rotary(config: Config, layers: str = "full_attention") -> dict[str, Any]:
    """Parameters of the rotary embedding, with at least `rope_type` and `rope_theta`; models with several have one for a kind of layers."""
    given = config.get("rope_parameters") or {}
    given = given.get(layers, given)
    return {"rope_type": "default", "rope_theta": 10000.0, **given}


def _check_rotary(parameters: Mapping[str, Any], place: str) -> None:
    if parameters.get("partial_rotary_factor", 1.0) not in (1.0, None):
        raise InputError(f"{place}: rotation of a part of each head cannot be written to GGUF")
    if parameters["rope_type"] != "yarn":
        return
    for setting, default in _YARN_DEFAULTS.items():
        if parameters.get(setting, default) not in (default, None):
            raise InputError(f"{place}: {setting} = {parameters[setting]} cannot be written to GGUF")
    if not parameters.get("original_max_position_embeddings"):
        raise InputError(f"{place} needs original_max_position_embeddings in config.json")


def frequency_factors(config: Config) -> Float[Tensor, "half"] | None:
    """What llama.cpp divides each rotary frequency by, for scaling of type `llama3`; None for other types.

    Frequencies with wavelengths below original / high_freq_factor stay, those above original / low_freq_factor are divided by `factor`, and
    those between are interpolated (Grattafiori et al. 2024, arXiv 2407.21783, in the form that transformers computes).
    """
    parameters = rotary(config)
    if parameters["rope_type"] != "llama3":
        return None
    size = head_size(config)
    frequency = parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = parameters["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / parameters["factor"] + smooth)).to(torch.float32)


# -- metadata ----------------------------------------------------------------------------------------------------------


def add_metadata(writer: GGUFWriter, architecture: Architecture, config: Config) -> None:
    """Put the model's sizes and settings into a file's metadata."""
    writer.add_context_length(_context_length(architecture, config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(size(config, "intermediate_size"))
    writer.add_head_count(size(config, "num_attention_heads"))
    writer.add_head_count_kv(size(config, "num_key_value_heads") or size(config, "num_attention_heads"))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_rotary(writer, architecture, config)
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _add_rotary(writer: GGUFWriter, architecture: Architecture, config: Config) -> None:
    parameters = rotary(config)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(parameters["rope_theta"])
    scaling = SCALINGS[parameters["rope_type"]]
    if scaling is not None:
        writer.add_rope_scaling_type(scaling)
        writer.add_rope_scaling_factor(parameters["factor"])
    if scaling is RopeScalingType.YARN:
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    if architecture.windows:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(_window_period(config))
        writer.add_rope_freq_base_swa(rotary(config, "sliding_attention")["rope_theta"])


def _context_length(architecture: Architecture, config: Config) -> int:
    """Longest context; for graphs without sliding windows at most the window, within which attention with and without it is the same."""
    longest = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    kinds = config.get("layer_types") or ("sliding_attention",)
    if architecture.windows or not window or window >= longest or "sliding_attention" not in kinds:
        return longest
    events.note(f"llama.cpp has no sliding window for this architecture: the context length is set to the window, {window} tokens")
    return int(window)
