"""Certificates with made-up figures for the tests of certificate and report."""

from __future__ import annotations

import math
from typing import Any

from thrifty.measure.certificate import Certificate

ROLES = {"q": 0.008, "k": 0.009, "v": 0.014, "o": 0.02, "gate": 0.011, "up": 0.012, "down": 0.024}


def layers(blocks: int = 6) -> list[dict[str, Any]]:
    """Seven matrices a block; errors fall slowly over depth, and the down projections have 8 bits in the last block."""
    rows = []
    for block in range(blocks):
        for index, (role, error) in enumerate(ROLES.items()):
            bits = 8 if role == "down" and block == blocks - 1 else 4
            relative = error * math.exp(-0.08 * block + 0.2 * math.sin(3 * block + index)) / (1 if bits == 4 else 200)
            name = f"model.layers.{block}.{'self_attn' if role in 'qkvo' else 'mlp'}.{role}_proj"
            rows.append(
                {"name": name, "method": "gptq", "bits": bits, "sparsity": 0.02, "error": 50 * relative, "relative_error": relative}
                | {"tokens": 65536, "role": role, "block": block, "weights": 256 * 256}
            )
    return rows


def certificate(**changes: Any) -> Certificate:
    """A whole certificate; `changes` replaces fields."""
    perplexity = {"before": {"value": 12.31, "low": 11.8, "high": 12.9}, "after": {"value": 12.69, "low": 12.1, "high": 13.3}}
    fields: dict[str, Any] = {
        "run_key": "k" * 64,
        "model": {
            "name": "tiny/model",
            "digest": "d" * 64,
            "architecture": "LlamaForCausalLM",
            "kind": "causal_lm",
            "parameters": 4_200_000,
        },
        "data": {
            "calibration": {"source": "train.txt", "digest": "c" * 64, "rows": 128, "tokens": 65536, "samples": list(range(128))},
            "evaluation": {"source": "test.txt", "digest": "e" * 64, "rows": 60, "tokens": 15360, "samples": list(range(60))},
        },
        "recipe": "steps:\n  - awq: {}\n  - gptq: {bits: 4, group_size: 32}\n",
        "request": {"samples": 128, "tokens": 512},
        "seed": 0,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cpu": "a processor", "cores": 2, "threads": 2, "ram_bytes": 24_000_000_000, "cuda": []},
        "layers": layers(),
        "quality": [
            {"metric": "perplexity", "before": 12.31, "after": 12.69, "difference": 0.38, "low": 0.33, "high": 0.43},
            {"metric": "kl", "before": 0.0, "after": 0.031, "difference": 0.031, "low": 0.029, "high": 0.033},
        ],
        "perplexity": perplexity,
        "perplexity_ratio": {"value": 1.031, "low": 1.027, "high": 1.035},
        "kl": {"value": 0.031, "low": 0.029, "high": 0.033},
        "top1_agreement": 0.912,
        "flips": {"right_to_wrong": 311, "wrong_to_right": 198},
        "bytes": {"before": 8_400_000, "after": 2_900_000},
        "bits_per_weight": 4.56,
        "speed": {"decode_tokens_per_second": {"before": 101.0, "after": 204.0}, "batch": 1, "threads": 2},
        "seconds": 42.5,
        "phases": {"compress": 30.1, "evaluate": 9.2, "write": 1.1},
        "peak_rss_bytes": 900_000_000,
    }
    return Certificate.build(**(fields | changes))


def vision(**changes: Any) -> Certificate:
    """A classifier of images, measured with labels: no perplexity, no flips, no speed."""
    fields: dict[str, Any] = {
        "model": {"name": "tiny/vit", "digest": "d" * 64, "architecture": "ViTForImageClassification", "kind": "vision"},
        "quality": [
            {"metric": "output_relative_error", "before": 0.0, "after": 0.0125, "difference": 0.0125, "low": 0.01, "high": 0.015},
            {"metric": "kl", "before": 0.0, "after": 0.002, "difference": 0.002, "low": 0.001, "high": 0.003},
            {"metric": "top1_agreement", "before": 1.0, "after": 0.98, "difference": -0.02, "low": -0.05, "high": 0.0},
            {"metric": "accuracy", "before": 0.91, "after": 0.9, "difference": -0.01, "low": -0.03, "high": 0.01},
        ],
        "relative_error": {"value": 0.0125, "low": 0.01, "high": 0.015},
        "accuracy": {"before": {"value": 0.91}, "after": {"value": 0.9}},
        "kl": {"value": 0.002, "low": 0.001, "high": 0.003},
        "top1_agreement": 0.98,
        "scored": {"rows": 50},
    }
    return unmeasured(**(fields | changes))


def unmeasured(**changes: Any) -> Certificate:
    """A result of which nobody knows what it lost."""
    names = ("perplexity", "perplexity_ratio", "kl", "top1_agreement", "flips", "speed")
    return certificate(**({name: None for name in names} | {"quality": [], "data": {}} | changes))
