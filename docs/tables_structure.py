"""Tables of what makes networks smaller in structure: from the files under bench/results."""

from __future__ import annotations

from typing import Any

from result_files import interval, read, table


def paired(differences: dict[str, Any]) -> str:
    """Differences of two results on the same windows."""
    rows = [[name, interval(pair["perplexity_difference"], 3), interval(pair["kl_difference"], 4)] for name, pair in differences.items()]
    return table(["paired", "perplexity", "KL divergence"], rows)


def lost(row: dict[str, Any]) -> list[str]:
    """Perplexity and KL divergence of a result."""
    kl = row["kl"]
    return [f"{row['perplexity']['value']:.3f}", f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})"]


def chain() -> str:
    """One chain beside quantizing alone and pruning alone."""
    found = read("chain.json")
    rows = [[row["name"], f"{row['bytes']['after'] / 1e6:.2f} MB", *lost(row)] for row in found["rows"]]
    first = found["rows"][0]
    original = f"{first['bytes']['before'] / 1e6:.2f} MB and perplexity {first['perplexity_before']['value']:.3f}"
    said = f"The original has {original}; {found['steps']} steps a training."
    return "\n\n".join([table(["", "weight files", "perplexity", "KL divergence"], rows), said, paired(found["differences"])])


def torch_pruning() -> str:
    """The same neurons, and what it takes."""
    found = read("torch_pruning.json")
    rows = [
        [
            row["model"],
            f"{row['neurons']:,}",
            "the same" if row["same"] else "others",
            f"{row['seconds']['thrifty']:.2f} s, {row['peak_bytes']['thrifty'] / 1e6:.0f} MB",
            f"{row['seconds']['Torch-Pruning']:.2f} s, {row['peak_bytes']['Torch-Pruning'] / 1e6:.0f} MB",
            f"{row['ratio']:.2f}",
        ]
        for row in found["rows"]
    ]
    return table(["model", "neurons that stay", "are", "thrifty", "Torch-Pruning", "time, thrifty / peer"], rows)


TABLES = {"chain": chain, "torch-pruning": torch_pruning}
