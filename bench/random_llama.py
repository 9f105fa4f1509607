"""Writes a Llama-shaped checkpoint with random weights: for time and memory, where quality does not matter.

Usage: python bench/random_llama.py FOLDER [--hidden 1024 --inner 2816 --layers 22 --heads 16 --key-value-heads 4 --vocabulary 32000]
The default has 314 million parameters. Weights are written block by block, so that deep models need no more memory than shallow ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from thrifty.data import default_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2816)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-value-heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32000)
    arguments = parser.parse_args()
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=arguments.hidden,
        intermediate_size=arguments.inner,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.key_value_heads,
        vocab_size=arguments.vocabulary,
        max_position_embeddings=2048,
        dtype="bfloat16",
        tie_word_embeddings=False,
    )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2))
    for file in default_model().glob("tokenizer*.json"):  # not used, but some tools open no model without one
        shutil.copy(file, arguments.folder)
    torch.manual_seed(0)
    files: dict[str, str] = {}
    total = 0
    for index in range(-1, arguments.layers):
        tensors = outer(arguments) if index < 0 else block(index, arguments)
        name = f"model-{index + 2:05d}-of-{arguments.layers + 1:05d}.safetensors"
        save_file(tensors, arguments.folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (arguments.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    print(f"{arguments.folder}: {total / 2e6:.1f} million parameters, {total} bytes")


def random(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * shape[-1] ** -0.5).to(torch.bfloat16)


def outer(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    return {
        "model.embed_tokens.weight": random(arguments.vocabulary, arguments.hidden),
        "lm_head.weight": random(arguments.vocabulary, arguments.hidden),
        "model.norm.weight": torch.ones(arguments.hidden, dtype=torch.bfloat16),
    }


def block(index: int, arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    hidden, inner = arguments.hidden, arguments.inner
    narrow = hidden // arguments.heads * arguments.key_value_heads
    at = f"model.layers.{index}"
    return {
        f"{at}.input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        f"{at}.post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        f"{at}.self_attn.q_proj.weight": random(hidden, hidden),
        f"{at}.self_attn.k_proj.weight": random(narrow, hidden),
        f"{at}.self_attn.v_proj.weight": random(narrow, hidden),
        f"{at}.self_attn.o_proj.weight": random(hidden, hidden),
        f"{at}.mlp.gate_proj.weight": random(inner, hidden),
        f"{at}.mlp.up_proj.weight": random(inner, hidden),
        f"{at}.mlp.down_proj.weight": random(hidden, inner),
    }


if __name__ == "__main__":
    main()
