"""The tables of number formats, solvers and what precedes them."""

from __future__ import annotations

from result_files import interval, read, table


def activations() -> str:
    """What rounding inputs costs, by kind of grid."""
    rows = [
        [
            row.get("model", "package"),
            row["weights"],
            row["inputs"],
            f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else "simulated",
            f"{row['perplexity']['after']['value']:.3f}" if "perplexity" in row else "",
            f"{row['kl']['value']:.4f} ({row['kl']['low']:.4f} to {row['kl']['high']:.4f})",
        ]
        for row in read("activations.json")["rows"]
    ]
    return table(["model", "weights", "inputs", "bits a weight in the file", "perplexity", "KL divergence"], rows)


def rotations() -> str:
    """What rotations change at few bits, paired with the same weights without one."""
    found = read("rotations.json")
    rows = []
    for row in found["rows"]:
        beside = row.get("minus none")
        paired = [interval(beside[f"{what}_difference"], 3) for what in ("perplexity", "kl")] if beside else ["", ""]
        rows.append([row["weights"], row["rotation"], f"{row['perplexity']['value']:.3f}", f"{row['kl']['value']:.4f}", *paired])
    before, windows = found["rows"][0]["perplexity_before"]["value"], found["evaluation"]
    head = ["weights", "rotation", "perplexity", "KL divergence", "perplexity, minus none", "KL, minus none"]
    return f"{table(head, rows)}\n\nThe original has perplexity {before:.3f}; {windows['rows']} windows, {windows['tokens']} tokens."


def hadamard() -> str:
    """The fast transform beside a copy, compiled and in plain torch."""
    rows = [
        [
            f"{row['width']:,}",
            row["dtype"],
            *(f"{1e6 * row[part]:.1f} us" for part in ("copy", "transform", "plain")),
            f"{row['share']:.1%}",
        ]
        for row in read("hadamard.json")["rows"]
    ]
    return table(["width", "values", "copy", "transform", "in plain torch", "copy / transform"], rows)


def online() -> str:
    """What turning inputs while the model runs changes, paired with the same weights without it."""
    found = read("online.json")
    rows = []
    for row in found["rows"]:
        paired = [
            interval(row[other][f"{what}_difference"], 3) if other in row else ""
            for other in ("minus none", "minus offline")
            for what in ("perplexity", "kl")
        ]
        rows.append([row["weights"], row["rotation"], f"{row['perplexity']['value']:.3f}", f"{row['kl']['value']:.4f}", *paired])
    head = [
        "weights",
        "rotation",
        "perplexity",
        "KL divergence",
        *(f"{what}, minus {other}" for other in ("none", "offline") for what in ("perplexity", "KL")),
    ]
    return table(head, rows)


def number_formats() -> str:
    """Each number format, rounded to nearest and by `obs`."""
    found = read("number_formats.json")["rows"]
    rows = []
    for nearest, swept in zip(found[::2], found[1::2], strict=True):
        rows.append([nearest["format"], f"{nearest['bits']:.2f}"])
        for row in (nearest, swept):
            rows[-1] += [f"{row['perplexity']['after']['value']:.3f}", f"{row['kl']['value']:.5f}"]
    head = ["format", "bits per weight", "perplexity, to nearest", "KL divergence", "perplexity, `obs`", "KL divergence"]
    return f"{table(head, rows)}\n\nThe original has perplexity {found[0]['perplexity']['before']['value']:.3f}."


def lowest_bits() -> str:
    """Grids of two bits and fewer, rounded to nearest and by `obs`."""
    found = read("lowest_bits.json")["rows"]
    rows = []
    for nearest, swept in zip(found[::2], found[1::2], strict=True):
        rows.append([nearest["target"], f"{nearest['group_size']}", f"{nearest['bits']:.2f}"])
        for row in (nearest, swept):
            rows[-1] += [f"{row['perplexity']['after']['value']:.2f}", f"{row['kl']['value']:.4f}"]
    head = ["levels", "groups of", "bits per weight", "perplexity, to nearest", "KL divergence", "perplexity, `obs`", "KL divergence"]
    return f"{table(head, rows)}\n\nThe original has perplexity {found[0]['perplexity']['before']['value']:.2f}."


def low_bit() -> str:
    """Every way to fewer bits, with what it takes and loses."""
    found = sorted(read("low_bit.json")["rows"], key=lambda row: (row["bits"], row["kl"]["value"]))
    rows = [
        [
            row["name"],
            f"{row['bits']:.3f}",
            f"{row['perplexity']['value']:.3f}",
            interval(row["kl"], 4),
            f"{row['calibration_windows']}",
            row.get("taken from", "").removesuffix(".json"),
        ]
        for row in found
    ]
    head = ["what", "bits per weight", "perplexity", "KL divergence", "calibration windows", "taken from"]
    return f"{table(head, rows)}\n\nThe original has perplexity {found[0]['perplexity_before']['value']:.3f}."


SOLVED = {"embedded": "The model inside the package", "shakespeare": "`shakespeare-1m`, which nothing was tuned on"}
"""The models whose grids are solved, by their part of the name of the results."""


def solvers() -> str:
    """Solvers of the same grids on two models, each divergence, and ours beside auto-round where it was run."""
    parts = []
    for model, words in SOLVED.items():
        found = read(f"solvers_{model}.json")["rows"]
        names = list(dict.fromkeys(name for row in found for name in row["results"]))
        rows, pairs = [], []
        for row in found:
            grid = f"{row['bits']} bit, {'symmetric' if row['symmetric'] else 'zero points'}"
            scores = [row["results"].get(name) for name in names]
            cells = ["" if one is None else f"{one['perplexity']['value']:.2f} / {one['kl']['value']:.4f}" for one in scores]
            rows.append([grid, *cells])
            for pair, beside in row["differences"].items():
                if pair.endswith("minus auto-round"):
                    pairs.append([grid, pair, interval(beside["perplexity_difference"], 3), interval(beside["kl_difference"], 4)])
        before = found[0]["results"][names[0]]["perplexity_before"]["value"]
        parts += [
            f"{words}, whose perplexity is {before:.2f}:",
            table(["perplexity / KL divergence", *(f"`{name}`" for name in names)], rows),
        ]
        parts.append(table(["grid", "paired", "perplexity", "KL divergence"], pairs))
    return "\n\n".join(parts)


def allocation() -> str:
    """Every way to share bits among the matrices, at the same mean, on two models."""
    parts = []
    for model, words in SOLVED.items():
        found = read("allocation.json" if model == "embedded" else f"allocation_{model}.json")["rows"]
        rows = []
        for row in sorted(found, key=lambda row: (row["kind"], row["mean"], -row["kl"]["value"])):
            counts = ", ".join(f"{count} of {bits}" for bits, count in row["linears"].items())
            judged = "" if row["share"] == "uniform" else row["weigh"]
            after = f"{row['perplexity']['after']['value']:.3f}"
            chosen = [row["kind"], f"{row['mean']:g}", f"`{row['share']}`", judged]
            kl = f"{row['kl']['value']:.4f} [{row['kl']['low']:.4f}, {row['kl']['high']:.4f}]"
            rows.append([*chosen, f"{row['bits']:.3f}", counts, after, kl])
        head = ["targets", "budget", "chosen by", "weighed by", "mean bits", "matrices of bits", "perplexity", "KL divergence"]
        parts += [f"{words}, whose perplexity is {found[0]['perplexity']['before']['value']:.3f}:", table(head, rows)]
    return "\n\n".join(parts)


TABLES = {
    "activations": activations,
    "rotations": rotations,
    "hadamard": hadamard,
    "online": online,
    "number formats": number_formats,
    "lowest bits": lowest_bits,
    "low bit": low_bit,
    "solvers": solvers,
    "allocation": allocation,
}
