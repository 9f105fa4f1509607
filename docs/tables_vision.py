"""The tables of what was measured on the digits."""

from __future__ import annotations

from typing import Any

from result_files import interval, read, table


def one_grid() -> str:
    """Inputs on one grid after each rewrite."""
    found = read("vision.json")
    rows = [
        [
            row["weights and inputs"],
            f"`{row['range']}`",
            name,
            f"{scores['accuracy']['value']:.2%}",
            f"{scores['relative_error']['value']:.3%}",
            _beside(row["minus as it is"].get(name), "relative_error_difference", 5),
            _beside(row["minus as it is"].get(name), "accuracy_difference", 4),
        ]
        for row in found["digits_inputs"]["rows"]
        for name, scores in row["results"].items()
    ]
    head = ["digits: weights and inputs", "range", "inputs", "recognised", "relative error", "difference", "of recognised"]
    before = found["digits_inputs"]["rows"][0]["results"]["as it is"]["accuracy_before"]["value"]
    parts = [table(head, rows), f"The original recognises {before:.2%} of the {found['digits_inputs']['images']} images."]
    if "embedded_inputs" in found:
        rows = [
            [row["weights and inputs"], name, *_quality(scores), _beside(row["minus as it is"].get(name), "kl_difference", 5)]
            for row in found["embedded_inputs"]["rows"]
            for name, scores in row["results"].items()
        ]
        parts.append(table(["embedded: weights and inputs", "inputs", "perplexity", "KL divergence", "difference"], rows))
    return "\n\n".join(parts)


def attention_probabilities() -> str:
    """What rounding probabilities of attention costs the digits."""
    found = read("vision.json")["digits_inputs"]["attention"]
    rows = [
        [name, f"{scores['accuracy']['value']:.2%}", f"{scores['relative_error']['value']:.3%}"]
        for name, scores in found.items()
        if name != "difference"
    ]
    said = f"The first minus the second: relative error {interval(found['difference']['relative_error_difference'], 5)}."
    return f"{table(['4 bits', 'recognised', 'relative error'], rows)}\n\n{said}"


def centred() -> str:
    """Inputs after centring, scaling and rotation."""
    rows = [
        [
            row["weights and inputs"],
            row["rewrite"],
            f"{row['accuracy']['value']:.2%}",
            f"{row['relative_error']['value']:.3%}",
            f"{row['kl']['value']:.4f}",
            _beside(row.get("minus as it is"), "relative_error_difference", 5),
        ]
        for row in read("hadanorm.json")["rows"]
    ]
    return table(["digits: weights and inputs", "rewrite", "recognised", "relative error", "KL divergence", "difference"], rows)


def diffusion() -> str:
    """Inputs of a diffusion transformer after each rewrite."""
    found = read("diffusion.json")
    rows = [
        [
            row["weights and inputs"],
            row["rewrite"],
            f"{row['relative_error']['value']:.3%}",
            _beside(row.get("minus as it is"), "relative_error_difference", 4),
            _beside(row.get("minus hadamard"), "relative_error_difference", 4),
        ]
        for row in found["rows"]
    ]
    return table(["digits: weights and inputs", "rewrite", "relative error", "minus as it is", "minus hadamard"], rows)


def recalibrated() -> str:
    """Solvers with and without recalibration."""
    found = read("vision.json")
    rows = []
    for row in found["digits_weights"]["rows"]:
        for name, scores in row["results"].items():
            pair = next((pair for words, pair in row["differences"].items() if words.startswith(f"{name} minus")), None)
            changed = f"{scores['recalibrated']} of {scores['matrices']}"
            quality = [f"{scores['accuracy']['value']:.2%}", f"{scores['relative_error']['value']:.3%}"]
            difference = _beside(pair, "relative_error_difference", 5)
            rows.append([f"{row['bits']} bits", str(row["calibration"]), f"`{name}`", changed, *quality, difference])
    head = ["digits: a scale a row", "images", "solver", "recalibrated", "recognised", "relative error", "difference"]
    parts = [table(head, rows)]
    if "embedded_weights" in found:
        rows = []
        for row in found["embedded_weights"]["rows"]:
            for name, scores in row["results"].items():
                pair = next((pair for words, pair in row["differences"].items() if words.startswith(f"{name} minus")), None)
                changed = f"{scores['recalibrated']} of {scores['matrices']}"
                rows.append([f"{row['bits']} bits", f"`{name}`", changed, *_quality(scores), _beside(pair, "kl_difference", 4)])
        parts.append(table(["embedded: groups of 32", "solver", "recalibrated", "perplexity", "KL divergence", "difference"], rows))
    return "\n\n".join(parts)


def trained_digits() -> str:
    """What training gives back, by where it starts and by what sets the ends of grids."""
    found = read("vision.json")["digits_trained"]
    rows, pairs = [], []
    for row in found["rows"]:
        kind = f"{row['bits']} bits, {'symmetric' if row['symmetric'] else 'zero points'}"
        for name, scores in row["results"].items():
            error = f"{scores['relative_error']['value']:.3%}"
            rows.append([kind, name, f"{scores['accuracy']['value']:.2%}", error, f"{scores['kl']['value']:.4f}"])
        for name, pair in row["differences"].items():
            pairs.append([kind, name, interval(pair["relative_error_difference"], 5), interval(pair["accuracy_difference"], 4)])
    said = f"{found['steps']} steps of {found['batch']} images out of {found['calibration']}."
    first = table(["digits: a scale a row", "start, then ends of grids", "recognised", "relative error", "KL divergence"], rows)
    return "\n\n".join([first, said, table(["digits: a scale a row", "paired", "relative error", "recognised"], pairs)])


def _quality(scores: dict[str, Any]) -> list[str]:
    """Perplexity and divergence in two cells."""
    return [f"{scores['perplexity']['value']:.3f}", f"{scores['kl']['value']:.4f}"]


def _beside(pair: dict[str, Any] | None, metric: str, digits: int) -> str:
    """A difference with its interval; nothing for what others are beside."""
    return "" if pair is None else interval(pair[metric], digits)


TABLES = {
    "one grid": one_grid,
    "attention probabilities": attention_probabilities,
    "recalibrated": recalibrated,
    "trained digits": trained_digits,
    "centred": centred,
    "diffusion": diffusion,
}
