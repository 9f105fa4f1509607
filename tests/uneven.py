"""Tiny networks whose layers differ in width, put together by hand from layers of plain models, and written as folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny import build, randomise
from thrifty.export.shards import Made, write_shards
from thrifty.export.uneven.folder import write_beside
from thrifty.export.uneven.outline import uneven_config

_WIDE = {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
_NARROW = {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
_HEADS_16 = ({**_WIDE, "head_dim": 16}, {**_NARROW, "head_dim": 16})
_HEADS_32 = ({**_WIDE, "head_dim": 32}, {**_NARROW, "head_dim": 32})

LAYERS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": _HEADS_16,
    "qwen2": _HEADS_16,
    "qwen3": _HEADS_32,
    "mistral": _HEADS_16,
    "gemma2": _HEADS_32,
    "gemma3": _HEADS_32,
    "phi": ({"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}, _HEADS_16[1]),
    "gpt2": ({"n_inner": 160}, {"n_inner": 96}),
    "opt": ({"ffn_dim": 64}, {"ffn_dim": 96}),
    "vit": (
        {"intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16},
        {"intermediate_size": 96, "num_attention_heads": 3, "head_dim": 16},
    ),
    "bert": ({"intermediate_size": 96}, {"intermediate_size": 64}),
    "mixtral": ({**_HEADS_16[0], "num_local_experts": 4}, {**_HEADS_16[1], "num_local_experts": 2}),
    "olmoe": ({"intermediate_size": 64, "num_experts": 4}, {"intermediate_size": 32, "num_experts": 3}),
    "qwen2_moe": (
        {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96, "num_experts": 4},
        {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "num_experts": 3},
    ),
    "qwen3_moe": (
        {**_HEADS_32[0], "num_local_experts": 4, "moe_intermediate_size": 64},
        {**_HEADS_32[1], "num_local_experts": 3, "moe_intermediate_size": 32},
    ),
    "mamba": ({"expand": 1, "intermediate_size": 64, "state_size": 8}, {"expand": 2, "intermediate_size": 128, "state_size": 4}),
    "mamba2": ({"expand": 2, "num_heads": 4}, {"expand": 1, "num_heads": 2}),
}
"""By the name of a tiny model: the settings of plain models that its first and its second layer are taken from."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The layers of a tiny model, of which there are two."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 2)


def by_hand(name: str) -> Any:
    """A plain model of transformers whose second layer comes from a plain model of other sizes."""
    original = build(name)
    made = []
    for settings in LAYERS[name]:
        model = type(original)(type(original.config).from_dict({**original.config.to_dict(), **settings})).eval()
        randomise(model)
        made.append(model)
    blocks(made[0])[1] = blocks(made[1])[1]
    return made[0]


def sizes_of(name: str) -> dict[str, list[int]]:
    """The sizes of the layers that `by_hand` puts together, as `uneven_config` takes them."""
    first, second = LAYERS[name]
    sizes = {size: [first[size], second[size]] for size in first if size in second and size != "head_dim"}
    if "expand" in sizes:
        sizes["intermediate_size"] = [64 * factor for factor in sizes.pop("expand")]
    return sizes


def write_model(folder: Path, config: Any, sizes: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write tensors, by the names that they have in memory, as a folder; returns its config. config: that of the dense model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    made = uneven_config({**json.loads(config.to_json_string(use_diff=False)), "dtype": "float32"}, sizes, shapes)
    pieces = [Made(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in tensors.items()]
    folder.mkdir(parents=True)
    write_shards(folder, pieces)
    write_beside(folder, made)
    return made


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model, shared ones once."""
    return {name: tensor.detach() for name, tensor in model.named_parameters()} | dict(_persistent(model))


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    stored = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def write_by_hand(name: str, folder: Path, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """(the model put together by hand, the config of the folder that it was written to)."""
    torch.manual_seed(seed)
    model = by_hand(name)
    dense = build(name).config
    dense.architectures = [type(model).__name__]
    return model, write_model(folder, dense, sizes_of(name), tensors_of(model))
