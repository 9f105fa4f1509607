"""Tiny models of every architecture whose sizes are drawn: blocks, widths, heads, experts, states, patches, and which biases there are.

The smallest choice of each stands first, so that hypothesis shrinks to it, and leaves something to remove. Sizes may coincide (as many
neurons as channels, as many experts as heads), for the product finds the attributes of a config by their value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hub
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import randomise

VOCABULARY = 40
IMAGE_TOKEN = VOCABULARY - 1
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Draw = Callable[[st.SearchStrategy], Any]


@dataclass(frozen=True)
class Drawn:
    """A model and rows of inputs for it. sizes: what was drawn, for people."""

    model: Any
    rows: dict[str, Tensor]
    sizes: dict[str, Any]

    def __repr__(self) -> str:
        return f"{type(self.model).__name__}({self.sizes})"


@st.composite
def anatomies(draw: Draw, name: str, blocks: tuple[int, ...] = (2, 1, 3)) -> Drawn:
    """Models of the architecture called `name`. blocks: how many blocks they may have."""
    sizes: dict[str, Any] = {"num_hidden_layers": draw(st.sampled_from(blocks))}
    torch.manual_seed(draw(st.integers(0, 1 << 16)))
    model, rows = _BUILD[name](draw, sizes)
    model.eval()
    randomise(model)
    return Drawn(model, rows, sizes)


def _one(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


def _switch(draw: Draw, *names: str) -> dict[str, bool]:
    return {name: draw(st.booleans()) for name in names}


def _width(draw: Draw, hidden: int) -> int:
    """Of an MLP: any, that of the hidden states too."""
    return draw(st.one_of(st.integers(3, 24), st.just(hidden)))


def _tokens(length: int = 7) -> Tensor:
    return torch.randint(3, IMAGE_TOKEN, (2, length))


# -- decoders ----------------------------------------------------------------------------------------------------------


def _grouped(draw: Draw, sizes: dict[str, Any], *, own_width: bool, grouped: bool = True) -> dict[str, Any]:
    """Heads and hidden size. own_width: whether a head may have another width than its share of the hidden states."""
    groups = _one(draw, 2, 4, 3, 1)
    heads = groups * (_one(draw, 1, 2, 3) if grouped else 1)
    width = _one(draw, 4, 8, 2)
    hidden = heads * (_one(draw, width, 6, 3, 8) if own_width else width)
    found = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups}
    if own_width:
        found["head_dim"] = width
    return found


def _decoder(
    model: Any,
    config: Any,
    switches: tuple[str, ...] = (),
    *,
    own_width: bool = True,
    more: Callable[[Draw, dict[str, Any]], dict[str, Any]] = lambda draw, sizes: {},
) -> Any:
    """A decoder whose config has the usual names. more: what else it has, given what is drawn already."""

    def build(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        sizes |= _grouped(draw, sizes, own_width=own_width)
        sizes["intermediate_size"] = _width(draw, sizes["hidden_size"])
        sizes |= _switch(draw, "tie_word_embeddings", *switches)
        sizes |= more(draw, sizes)
        return model(config(vocab_size=VOCABULARY, max_position_embeddings=64, **_TOKENS, **sizes)), {"input_ids": _tokens()}

    return build


def _experts(draw: Draw, sizes: dict[str, Any], count: str = "num_experts") -> dict[str, Any]:
    experts = _one(draw, 3, 2, 4, 6)
    return {count: experts, "num_experts_per_tok": draw(st.integers(1, experts))}


def _gemma(draw: Draw, sizes: dict[str, Any]) -> dict[str, Any]:
    first = _one(draw, 0, 1)
    kinds = [("sliding_attention", "full_attention")[(first + place) % 2] for place in range(sizes["num_hidden_layers"])]
    return {"query_pre_attn_scalar": _one(draw, 4, 9), "sliding_window": 4, "layer_types": kinds}


def _qwen2_moe(draw: Draw, sizes: dict[str, Any]) -> dict[str, Any]:
    widths = {f"{part}intermediate_size": _width(draw, sizes["hidden_size"]) for part in ("moe_", "shared_expert_")}
    return {**_experts(draw, sizes), **widths, **_plain_layers(draw, sizes)}


def _qwen3_moe(draw: Draw, sizes: dict[str, Any]) -> dict[str, Any]:
    return {**_experts(draw, sizes), "moe_intermediate_size": _width(draw, sizes["hidden_size"]), **_plain_layers(draw, sizes)}


def _plain_layers(draw: Draw, sizes: dict[str, Any]) -> dict[str, Any]:
    """One layer without experts, or none."""
    return {"mlp_only_layers": _one(draw, [], [0], [1]), "norm_topk_prob": draw(st.booleans())}


def _phi(draw: Draw, sizes: dict[str, Any]) -> dict[str, Any]:
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": _one(draw, 1.0, 0.5)}
    if sizes["hidden_size"] != sizes["num_attention_heads"] * sizes["head_dim"]:
        return {"rope_parameters": rotary}  # norms of queries and keys are as wide as a head's share of the hidden states
    return {"rope_parameters": rotary, **_switch(draw, "qk_layernorm")}


def _gpt2(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    heads = _one(draw, 2, 4, 3, 1)
    sizes |= {"n_head": heads, "n_embd": heads * _one(draw, 4, 3, 8), "n_layer": sizes.pop("num_hidden_layers")}
    sizes |= {"n_inner": _one(draw, None, 5, 16), **_switch(draw, "tie_word_embeddings")}
    config = hub.GPT2Config(vocab_size=VOCABULARY, n_positions=64, bos_token_id=1, eos_token_id=2, **sizes)
    return hub.GPT2LMHeadModel(config), {"input_ids": _tokens()}


def _opt(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    heads = _one(draw, 2, 4, 3, 1)
    hidden = heads * _one(draw, 4, 3, 8)
    sizes |= {"num_attention_heads": heads, "hidden_size": hidden, "ffn_dim": _width(draw, hidden)}
    sizes |= {"word_embed_proj_dim": _one(draw, hidden, 10), "enable_bias": _one(draw, True, False)}
    sizes |= {"do_layer_norm_before": _one(draw, True, False), **_switch(draw, "tie_word_embeddings")}
    config = hub.OPTConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **_TOKENS, **sizes)
    return hub.OPTForCausalLM(config), {"input_ids": _tokens()}


def _mamba(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    sizes |= {"hidden_size": _one(draw, 8, 12, 6), "expand": _one(draw, 2, 1, 3), "state_size": draw(st.integers(2, 8))}
    sizes |= {"conv_kernel": _one(draw, 4, 2, 3), "time_step_rank": _one(draw, "auto", 3, 5)}
    sizes |= _switch(draw, "use_bias", "use_conv_bias", "tie_word_embeddings")
    return hub.MambaForCausalLM(hub.MambaConfig(vocab_size=VOCABULARY, **_TOKENS, **sizes)), {"input_ids": _tokens()}


def _mamba2(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    groups = _one(draw, 2, 1, 3)
    heads, width = groups * _one(draw, 2, 1), _one(draw, 4, 6)
    sizes |= {"n_groups": groups, "num_heads": heads, "head_dim": width, "expand": _one(draw, 2, 1)}
    sizes |= {"hidden_size": heads * width // sizes["expand"], "state_size": draw(st.integers(2, 8))}
    sizes |= {"conv_kernel": _one(draw, 4, 2, 3), "chunk_size": _one(draw, 4, 16)}
    sizes |= _switch(draw, "use_bias", "use_conv_bias", "tie_word_embeddings")
    return hub.Mamba2ForCausalLM(hub.Mamba2Config(vocab_size=VOCABULARY, **_TOKENS, **sizes)), {"input_ids": _tokens()}


# -- encoders, images, both --------------------------------------------------------------------------------------------


def _encoder(draw: Draw, blocks: int) -> dict[str, Any]:
    heads = _one(draw, 2, 4, 3, 1)
    hidden = heads * _one(draw, 4, 3, 8)
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": _width(draw, hidden),
        "num_hidden_layers": blocks,
    }


def _picture(draw: Draw, blocks: int) -> dict[str, Any]:
    patch = _one(draw, 4, 2, 3)
    return {**_encoder(draw, blocks), "patch_size": patch, "image_size": patch * _one(draw, 2, 3)}


def _pixels(size: int) -> Tensor:
    return torch.randn(2, 3, size, size)


def _bert(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    sizes |= _encoder(draw, sizes["num_hidden_layers"])
    sizes["hidden_act"] = _one(draw, "gelu", "relu")
    return hub.BertForMaskedLM(hub.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0, **sizes)), {
        "input_ids": _tokens()
    }


def _vit(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    sizes |= {**_picture(draw, sizes["num_hidden_layers"]), **_switch(draw, "qkv_bias")}
    return hub.ViTForImageClassification(hub.ViTConfig(**sizes, num_labels=5)), {"pixel_values": _pixels(sizes["image_size"])}


def _two_towers(model: Any, config: Any, own: Callable[[Draw, int], dict[str, int]]) -> Any:
    """Text and image side by side. own: what the config itself has, given the hidden size of its image encoder."""

    def build(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        vision = _picture(draw, sizes["num_hidden_layers"])
        text = {**_encoder(draw, _one(draw, 2, 1)), "vocab_size": VOCABULARY, "max_position_embeddings": 16, **_TOKENS}
        whole = own(draw, vision["hidden_size"])
        if not whole:  # the two are compared as they are
            text["hidden_size"] = text["num_attention_heads"] * max(1, vision["hidden_size"] // text["num_attention_heads"])
            text["projection_size"] = vision["hidden_size"]
        sizes |= {"vision": vision, "text": text, **whole}
        tokens = _tokens()
        tokens[:, -1] = _TOKENS["eos_token_id"]
        rows = {"input_ids": tokens, "pixel_values": _pixels(vision["image_size"])}
        return model(config(text_config=dict(text), vision_config=dict(vision), **whole)), rows

    return build


def _with_image(image_tokens: int, size: int) -> dict[str, Tensor]:
    image = torch.full((2, image_tokens), IMAGE_TOKEN)
    tokens = _tokens()
    return {"input_ids": torch.cat([tokens[:, :2], image, tokens[:, 2:]], dim=1), "pixel_values": _pixels(size)}


def _decoder_of_text(draw: Draw, blocks: int) -> dict[str, Any]:
    own = _grouped(draw, {}, own_width=True)
    width = _width(draw, own["hidden_size"])
    return {**own, "intermediate_size": width, "num_hidden_layers": blocks, "vocab_size": VOCABULARY, "max_position_embeddings": 64}


def _llava(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    vision, text = _picture(draw, _one(draw, 2, 3)), _decoder_of_text(draw, sizes["num_hidden_layers"])
    own = {"vision_feature_layer": _one(draw, -2, -1, 1), **_switch(draw, "multimodal_projector_bias")}
    sizes |= {"vision": vision, "text": text, **own}
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    config = hub.LlavaConfig(
        vision_config=hub.CLIPVisionConfig(**vision), text_config=hub.LlamaConfig(**text, **_TOKENS), image_token_index=IMAGE_TOKEN, **own
    )
    return hub.LlavaForConditionalGeneration(config), _with_image(patches, vision["image_size"])


def _gemma3_vision(draw: Draw, sizes: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    vision, text = _picture(draw, _one(draw, 2, 1)), _decoder_of_text(draw, sizes["num_hidden_layers"])
    text |= _gemma(draw, sizes)
    sizes |= {"vision": vision, "text": text}
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    tokens = {"mm_tokens_per_image": patches, "image_token_index": IMAGE_TOKEN}
    config = hub.Gemma3Config(text_config={**text, **_TOKENS}, vision_config=dict(vision), **tokens)
    return hub.Gemma3ForConditionalGeneration(config), _with_image(patches, vision["image_size"])


_BUILD: dict[str, Callable[[Draw, dict[str, Any]], tuple[Any, dict[str, Tensor]]]] = {
    "llama": _decoder(hub.LlamaForCausalLM, hub.LlamaConfig, ("attention_bias", "mlp_bias")),
    "qwen2": _decoder(hub.Qwen2ForCausalLM, hub.Qwen2Config),
    "qwen3": _decoder(hub.Qwen3ForCausalLM, hub.Qwen3Config, ("attention_bias",)),
    "mistral": _decoder(hub.MistralForCausalLM, hub.MistralConfig, more=lambda draw, sizes: {"sliding_window": _one(draw, None, 4)}),
    "gemma2": _decoder(hub.Gemma2ForCausalLM, hub.Gemma2Config, ("attention_bias",), more=_gemma),
    "gemma3": _decoder(hub.Gemma3ForCausalLM, hub.Gemma3TextConfig, ("attention_bias",), more=_gemma),
    "gpt2": _gpt2,
    "opt": _opt,
    "phi": _decoder(hub.PhiForCausalLM, hub.PhiConfig, more=_phi),
    "mixtral": _decoder(hub.MixtralForCausalLM, hub.MixtralConfig, more=lambda draw, sizes: _experts(draw, sizes, "num_local_experts")),
    "olmoe": _decoder(hub.OlmoeForCausalLM, hub.OlmoeConfig, ("attention_bias", "norm_topk_prob"), own_width=False, more=_experts),
    "qwen2_moe": _decoder(hub.Qwen2MoeForCausalLM, hub.Qwen2MoeConfig, ("qkv_bias",), more=_qwen2_moe),
    "qwen3_moe": _decoder(hub.Qwen3MoeForCausalLM, hub.Qwen3MoeConfig, ("attention_bias",), more=_qwen3_moe),
    "bert": _bert,
    "vit": _vit,
    "clip": _two_towers(hub.CLIPModel, hub.CLIPConfig, lambda draw, hidden: {"projection_dim": _one(draw, 8, hidden)}),
    "siglip": _two_towers(hub.SiglipModel, hub.SiglipConfig, lambda draw, hidden: {}),
    "llava": _llava,
    "gemma3_vision": _gemma3_vision,
    "mamba": _mamba,
    "mamba2": _mamba2,
}
