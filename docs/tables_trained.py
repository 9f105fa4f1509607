"""The tables of what training gives back."""

from __future__ import annotations

from result_files import interval, read, table


def additive_trained() -> str:
    """What training gives codebooks, beside grids of as many bits."""
    found = read("additive_trained.json")
    rows = [
        [
            row["name"],
            f"{row['bits_of_a_matrix']:.2f}",
            f"{row['perplexity']['value']:.3f}",
            f"{row['kl']['value']:.4f} ({row['kl']['low']:.4f} to {row['kl']['high']:.4f})",
        ]
        for row in found["rows"]
    ]
    pairs = [
        [name, interval(pair["perplexity_difference"], 3), interval(pair["kl_difference"], 4)]
        for name, pair in found["differences"].items()
    ]
    said = f"{found['steps']} steps, {found['calibration']} tokens of text."
    first = table(["", "bits of a matrix in the file", "perplexity", "KL divergence"], rows)
    return "\n\n".join([first, said, table(["paired", "perplexity", "KL divergence"], pairs)])
