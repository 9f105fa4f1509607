"""The tables of what training gives back."""

from __future__ import annotations

from typing import Any

from result_files import interval, read, table


def quantization_aware() -> str:
    """What training after solving gives back."""
    return _trained(read("quantization_aware.json"), "bits_per_weight")


def rates() -> str:
    """Rates of their own for matrices that are trained together, beside one rate."""
    found = read("rates.json")
    cases = {"healing": "60 % pruned, healed", "codes": "2 bits, trained"}
    rows = [
        [words, row["name"], f"{row['perplexity']['value']:.3f}", f"{row['kl']['value']:.4f}"]
        for name, words in cases.items()
        for row in found[name]["rows"]
    ]
    pairs = [
        [words, name, interval(pair["perplexity_difference"], 3), interval(pair["kl_difference"], 4)]
        for case, words in cases.items()
        for name, pair in found[case]["differences"].items()
    ]
    scratch = found["scratch"]
    images = [[row["name"], f"{row['loss']['value']:.4f}", f"{100 * row['accuracy']['value']:.2f} %"] for row in scratch["rows"]]
    beside = [
        [name, interval(pair["loss_difference"], 4), interval(pair["errors_difference"], 4)]
        for name, pair in scratch["differences"].items()
    ]
    said = f"{found['healing']['steps']} steps a training, {found['healing']['evaluation']['rows']} held-out windows."
    drawn = f"From random weights: {scratch['epochs']} epochs, {scratch['seeds']} seeds, {scratch['images']} held-out images."
    return "\n\n".join(
        [
            table(["", "rates", "perplexity", "KL divergence"], rows),
            said,
            table(["", "paired", "perplexity", "KL divergence"], pairs),
            drawn,
            table(["rates", "loss", "recognised"], images),
            table(["paired", "loss", "share of errors"], beside),
        ]
    )


def _trained(found: dict[str, Any], bits: str) -> str:
    """What each solved and each trained result loses, at which bits (a key of its rows), and how they differ."""
    rows = [
        [
            row["name"],
            f"{row[bits]:.2f}",
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
    where = {"bits_per_weight": "in the file", "bits_of_a_matrix": "of a matrix"}[bits]
    head = ["", f"bits a weight {where}", "perplexity", "KL divergence", "whole run"]
    return "\n\n".join([table(head, rows), said, table(["paired", "perplexity", "KL divergence"], pairs)])


def diffusion_weights() -> str:
    """Weights of a diffusion transformer on grids and as sums of codewords, solved and trained."""
    found = read("diffusion_weights.json")
    rows = [
        [
            row["name"],
            f"{row['bits']:.2f}",
            f"{row['weight_error']:.1%}",
            f"{row['relative_error']['value']:.3%} ({row['relative_error']['low']:.3%} to {row['relative_error']['high']:.3%})",
            interval(row["loss_rise"], 4),
            f"{row['seconds']:.0f} s",
        ]
        for row in found["rows"]
    ]
    pairs = [
        [name, interval(pair["relative_error_difference"], 5), interval(pair["loss_difference"], 5)]
        for name, pair in found["differences"].items()
    ]
    said = f"The original has the loss {found['loss']:.4f} on {found['images']} images. {found['calibration']} rows to solve and train on,"
    said += f" {found['steps']} steps of {found['batch']}; load of the machine {found['load'][0]:.1f} on {found['hardware']['cores']}"
    said += " cores: read seconds beside each other only."
    head = ["digits", "bits a weight", "error of the weights", "relative error", "rise of the loss", "whole run"]
    return "\n\n".join([table(head, rows), said, table(["paired", "relative error", "loss"], pairs)])


TABLES = {
    "quantization aware": quantization_aware,
    "rates": rates,
    "diffusion weights": diffusion_weights,
}
