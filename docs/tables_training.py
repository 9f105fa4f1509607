"""The tables of what training gives back, and of rates that differ by matrix."""

from __future__ import annotations

from typing import Any

from result_files import interval, read, table

WORDS = {"healing": "60 % zeros", "codes": "2 bits"}


def rates() -> str:
    """A model that is healed in every way, and one that is trained from random weights."""
    found = read("rates.json")
    cases = {words: found[name] for name, words in WORDS.items() if name in found}
    rows = [
        [words, row["name"], f"{row['perplexity']['value']:.3f}", f"{row['kl']['value']:.4f}"]
        for words, case in cases.items()
        for row in case["rows"]
    ]
    pairs = [
        [words, pair, interval(difference["perplexity_difference"], 3), interval(difference["kl_difference"], 4)]
        for words, case in cases.items()
        for pair, difference in case["differences"].items()
    ]
    parts = [table(["", "rates", "perplexity", "KL divergence"], rows), table(["", "paired", "perplexity", "KL divergence"], pairs)]
    return "\n\n".join([*parts, *([_scratch(found["scratch"])] if "scratch" in found else [])])


def _scratch(part: dict[str, Any]) -> str:
    rows = [[row["name"], f"{row['loss']['value']:.4f}", f"{row['accuracy']['value']:.4f}"] for row in part["rows"]]
    pairs = [
        [pair, interval(difference["loss_difference"], 4), interval(difference["errors_difference"], 4)]
        for pair, difference in part["differences"].items()
    ]
    said = f"From random weights, {part['epochs']} epochs, means of {part['seeds']} seeds, {part['images']} held-out images:"
    head = ["rates", "held-out loss", "accuracy"]
    return "\n\n".join([said, table(head, rows), table(["paired", "held-out loss", "share of errors"], pairs)])


TABLES = {"rates": rates}


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


def quantization_aware() -> str:
    """What training after solving gives back."""
    found = read("quantization_aware.json")
    rows = [
        [
            row["name"],
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']['value']:.3f}",
            f"{row['kl']['value']:.4f} ({row['kl']['low']:.4f} to {row['kl']['high']:.4f})",
            f"{row['seconds']:.0f} s",
        ]
        for row in found["rows"]
    ]
    pairs = [
        [name, interval(pair["perplexity_difference"], 3), interval(pair["kl_difference"], 4)]
        for name, pair in found["differences"].items()
    ]
    before = found["rows"][0]["perplexity_before"]["value"]
    said = f"The original has perplexity {before:.3f}. {found['steps']} steps, {found['calibration']} tokens of text; load of the machine"
    said += (
        f" {found['load'][0]:.1f} on {found['hardware']['cores']} cores, {found['threads']} threads: read seconds beside each other only."
    )
    head = ["", "bits a weight in the file", "perplexity", "KL divergence", "whole run"]
    return "\n\n".join([table(head, rows), said, table(["paired", "perplexity", "KL divergence"], pairs)])
