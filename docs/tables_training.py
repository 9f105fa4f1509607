"""Tables of rates that differ by matrix: from bench/results/rates.json."""

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
