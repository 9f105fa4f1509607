"""Tiny random models, one for each architecture that has a declared anatomy, written as ordinary `save_pretrained` folders.

Hidden sizes are 64 and every width that a linear reads is a multiple of 32, so that group size 32 fits everywhere but in Mamba's time-step
projection. Norm weights, biases and every other parameter are drawn at random, so that a value that is not loaded shows.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hub
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

hub.utils.logging.disable_progress_bar()

VOCABULARY = 96
LETTERS = string.ascii_lowercase + "-"
IMAGE = 32
PATCH = 8
IMAGE_TOKENS = (IMAGE // PATCH) ** 2
IMAGE_TOKEN = VOCABULARY - 1
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **_TOKENS,
}
_ENCODER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_PICTURE: dict[str, Any] = {**_ENCODER, "image_size": IMAGE, "patch_size": PATCH}


def _llama() -> Any:
    return hub.LlamaForCausalLM(hub.LlamaConfig(**_TEXT))


def _qwen2() -> Any:
    return hub.Qwen2ForCausalLM(hub.Qwen2Config(**_TEXT, tie_word_embeddings=True))


def _qwen3() -> Any:
    return hub.Qwen3ForCausalLM(hub.Qwen3Config(**_TEXT, head_dim=32))


def _mistral() -> Any:
    return hub.MistralForCausalLM(hub.MistralConfig(**_TEXT, sliding_window=8))


def _gemma2() -> Any:
    return hub.Gemma2ForCausalLM(hub.Gemma2Config(**_TEXT, head_dim=32, query_pre_attn_scalar=32, sliding_window=8))


def _gemma3() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return hub.Gemma3ForCausalLM(hub.Gemma3TextConfig(**_TEXT, head_dim=32, query_pre_attn_scalar=32, sliding_window=8, layer_types=kinds))


def _gpt2() -> Any:
    return hub.GPT2LMHeadModel(
        hub.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)
    )


def _opt() -> Any:
    settings = {**_TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64}
    for name in ("intermediate_size", "num_key_value_heads"):
        settings.pop(name)
    return hub.OPTForCausalLM(hub.OPTConfig(**settings))


def _phi() -> Any:
    return hub.PhiForCausalLM(hub.PhiConfig(**{**_TEXT, "num_key_value_heads": 4}))


def _mixtral() -> Any:
    return hub.MixtralForCausalLM(hub.MixtralConfig(**_TEXT, num_local_experts=4, num_experts_per_tok=2))


def _olmoe() -> Any:
    return hub.OlmoeForCausalLM(hub.OlmoeConfig(**_TEXT, num_experts=4, num_experts_per_tok=2))


def _qwen2_moe() -> Any:
    settings = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2}
    return hub.Qwen2MoeForCausalLM(hub.Qwen2MoeConfig(**_TEXT, **settings))


def _qwen3_moe() -> Any:
    settings = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "mlp_only_layers": [0]}
    return hub.Qwen3MoeForCausalLM(hub.Qwen3MoeConfig(**_TEXT, **settings))


def _bert() -> Any:
    return hub.BertForMaskedLM(hub.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=256, pad_token_id=0, **_ENCODER))


def _vit() -> Any:
    return hub.ViTForImageClassification(hub.ViTConfig(**_PICTURE, num_labels=5))


def _clip() -> Any:
    text = {**_ENCODER, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "hidden_size": 96, **_TOKENS}
    return hub.CLIPModel(hub.CLIPConfig(text_config=text, vision_config=dict(_PICTURE), projection_dim=32))


def _siglip() -> Any:
    text = {**_ENCODER, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "hidden_size": 64, **_TOKENS}
    return hub.SiglipModel(hub.SiglipConfig(text_config=text, vision_config=dict(_PICTURE)))


def _llava() -> Any:
    vision = hub.CLIPVisionConfig(**{**_PICTURE, "num_hidden_layers": 3})
    config = hub.LlavaConfig(vision_config=vision, text_config=hub.LlamaConfig(**_TEXT), image_token_index=IMAGE_TOKEN)
    return hub.LlavaForConditionalGeneration(config)


def _gemma3_vision() -> Any:
    text = {**_TEXT, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
    tokens = {"mm_tokens_per_image": IMAGE_TOKENS, "image_token_index": IMAGE_TOKEN}
    return hub.Gemma3ForConditionalGeneration(hub.Gemma3Config(text_config=text, vision_config=dict(_PICTURE), **tokens))


def _mamba() -> Any:
    settings = {"vocab_size": VOCABULARY, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 4, **_TOKENS}
    return hub.MambaForCausalLM(hub.MambaConfig(**settings))


def _mamba2() -> Any:
    settings = {"vocab_size": VOCABULARY, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 2, **_TOKENS}
    return hub.Mamba2ForCausalLM(hub.Mamba2Config(**settings, num_heads=4, head_dim=32, n_groups=2, chunk_size=16))


def _dit() -> Any:
    from diffusers import DiTTransformer2DModel

    shape = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "sample_size": 8, "in_channels": 4, "out_channels": 8}
    return DiTTransformer2DModel(**shape, num_embeds_ada_norm=10)


def _pixart() -> Any:
    from diffusers import PixArtTransformer2DModel

    shape = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "sample_size": 8, "in_channels": 4, "out_channels": 8}
    return PixArtTransformer2DModel(**shape, cross_attention_dim=64, caption_channels=32)


def _flux() -> Any:
    from diffusers import FluxTransformer2DModel

    shape = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2, "in_channels": 4}
    return FluxTransformer2DModel(**shape, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8))


_BUILD: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "opt": _opt,
    "phi": _phi,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "bert": _bert,
    "vit": _vit,
    "clip": _clip,
    "siglip": _siglip,
    "llava": _llava,
    "gemma3_vision": _gemma3_vision,
    "mamba": _mamba,
    "mamba2": _mamba2,
}
ARCHITECTURES = tuple(_BUILD)
"""Models of transformers."""

_BUILD |= {"dit": _dit, "pixart": _pixart, "flux": _flux}
DIFFUSION = ("dit", "pixart", "flux")
"""Transformers of diffusers."""


def build(name: str, seed: int = 0) -> Any:
    """The tiny model called `name`, in evaluation mode, float32, every parameter random."""
    torch.manual_seed(seed)
    model = _BUILD[name]().eval()
    randomise(model)
    return model


def randomise(model: torch.nn.Module) -> None:
    """Move every parameter off its initial value: norms off one, biases off zero, matrices to a size that makes outputs vary."""
    for path, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif not path.endswith("A_log") and parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.6 / parameter.shape[-1] ** 0.5)


def tiny(name: str, folder: str | Path, seed: int = 0, dtype: torch.dtype = torch.float32, **save: Any) -> Path:
    """Write the tiny model called `name` into `folder` (settings of `save_pretrained` may follow); returns the folder."""
    build(name, seed).to(dtype).save_pretrained(folder, **save)
    return Path(folder)


def add_reader(name: str, folder: Path) -> None:
    """Put beside a tiny model what turns text or images into its inputs: a tokenizer of single characters, a processor, or both."""
    size = {"height": IMAGE, "width": IMAGE}
    if name == "bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
        hub.BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=40).save_pretrained(folder)
    elif name == "vit":
        ViTImageProcessorPil(size=size).save_pretrained(folder)
    elif name == "clip":
        words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
        tokenizer = hub.CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
        hub.CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size=size), tokenizer).save_pretrained(folder)
    elif name == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size=size)
        settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        hub.LlavaProcessor(images, _characters(), **settings).save_pretrained(folder)
    else:
        _characters().save_pretrained(folder)


def _characters() -> hub.PreTrainedTokenizerFast:
    """A tokenizer of single characters whose last entry stands for an image."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "\n", *string.printable[: IMAGE_TOKEN - 5], "<image>"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "additional_special_tokens": ["<image>"]}
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def inputs(name: str, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs for the model called `name`: token ids [rows, length], pixels [rows, 3, 32, 32], or both; noisy
    latents with their time steps and classes for a diffusion transformer."""
    generator = torch.Generator().manual_seed(seed)
    if name in DIFFUSION:
        latents = torch.randn(rows, 4, 8, 8, generator=generator)
        steps, classes = (torch.randint(0, most, (rows,), generator=generator) for most in (1000, 11))
        if name == "dit":
            return {"hidden_states": latents, "timestep": steps, "class_labels": classes}
        text = torch.randn(rows, 6, 32, generator=generator)
        if name == "pixart":
            mask = torch.arange(6) < torch.randint(2, 7, (rows, 1), generator=generator)
            return {"hidden_states": latents, "timestep": steps, "encoder_hidden_states": text, "encoder_attention_mask": mask.long()}
        places = torch.cartesian_prod(torch.arange(1.0), torch.arange(4.0), torch.arange(4.0)).expand(rows, 16, 3)
        return {
            "hidden_states": latents.reshape(rows, 64, 4)[:, :16],
            "timestep": steps / 1000,
            "encoder_hidden_states": text,
            "pooled_projections": torch.randn(rows, 32, generator=generator),
            "img_ids": places,
            "txt_ids": torch.zeros(rows, 6, 3),
        }
    pixels = torch.randn(rows, 3, IMAGE, IMAGE, generator=generator)
    tokens = torch.randint(3, IMAGE_TOKEN, (rows, length), generator=generator)
    if name == "vit":
        return {"pixel_values": pixels}
    if name in ("clip", "siglip"):
        tokens[:, -1] = _TOKENS["eos_token_id"]
        return {"input_ids": tokens, "pixel_values": pixels}
    if name in ("llava", "gemma3_vision"):
        image = torch.full((rows, IMAGE_TOKENS), IMAGE_TOKEN)
        return {"input_ids": torch.cat([tokens[:, :2], image, tokens[:, 2:]], dim=1), "pixel_values": pixels}
    return {"input_ids": tokens}
