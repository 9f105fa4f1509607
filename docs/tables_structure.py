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


def structure() -> str:
    """Units removed by every way of choosing, each beside the lot; blocks removed by two methods beside every choice by hand."""
    found = read("structure.json")
    rows = [
        [
            row["case"],
            f"`{row['method'].partition(' ')[0]}`{row['method'].removeprefix(row['method'].partition(' ')[0])}",
            f"{row['perplexity']['value']:.3f}",
            f"{row['kl']['value']:.4f}",
            interval(row["minus the lot"]["kl_difference"], 4) if "minus the lot" in row else "",
        ]
        for row in found["units"]
    ]
    units = table(["removed", "method", "perplexity", "KL", "KL minus that of the lot"], rows)
    by_hand = {tuple(row["removed"]): row for row in found["blocks by hand"]}
    ranked = {size: sorted((row["kl"]["value"], gone) for gone, row in by_hand.items() if len(gone) == size) for size in (1, 2)}
    rows = []
    for row in found["blocks"]:
        gone = tuple(row["removed"])
        order = [choice for _, choice in ranked[len(gone)]]
        best = f"{' and '.join(map(str, order[0]))}, {ranked[len(gone)][0][0]:.3f}"
        place = f"{order.index(gone) + 1} of {len(order)}"
        names = " and ".join(map(str, gone))
        rows.append([f"`{row['method']}`", names, f"{row['perplexity']['value']:.2f}", f"{row['kl']['value']:.3f}", place, best])
    head = ["method", "blocks removed", "perplexity", "KL", "place among all choices", "best choice, KL"]
    before = found["units"][0]["perplexity_before"]["value"]
    windows = found["evaluation"]
    note = f"The original has perplexity {before:.3f}; {windows['rows']} windows, {windows['tokens']} tokens."
    return "\n\n".join([units, table(head, rows), note])


def structure_speed() -> str:
    """How much faster half of the width, and 70 % of the depth, are."""
    found = read("structure_speed.json")
    rows = [row for part in (found, read("structure_speed_channels.json")) for row in _speeds(part)]
    tokens = f"A prompt of {found['prompt_tokens']} tokens, {found['new_tokens']} new ones, batch 1"
    said = f"{tokens}, {found['threads']} threads, {found['rounds']} rounds."
    head = ["", "parameters", "prompt, tokens/s", "new tokens/s", "prompt, times dense", "new tokens, times dense"]
    return f"{table(head, rows)}\n\n{said}"


def _speeds(found: dict[str, Any]) -> list[list[str]]:
    """A row for each model of one measurement, the dense one first."""
    return [
        [
            name,
            f"{found['structure'][name]['parameters'][1] / 1e6:.0f} M" if name in found["structure"] else "314 M",
            *(f"{found[f'{phase}_tokens_per_second'][name]:.1f}" for phase in ("prefill", "decode")),
            *(f"{found['times dense'][phase].get(name, 1):.2f}" for phase in ("prefill", "decode")),
        ]
        for name in found["prefill_tokens_per_second"]
    ]


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


def chosen_digits() -> str:
    """Neurons of a vision transformer by every way of choosing."""
    return _compared(read("structure_methods.json")["digits"], "relative_error", "accuracy")


def distilled_digits() -> str:
    """The same after distillation."""
    return _compared(read("structure_methods.json")["distilled"], "relative_error", "accuracy")


def chosen_states() -> str:
    """Decays, places of the state and projections of a small Mamba."""
    return _compared(read("structure_methods.json")["states"], "kl", "perplexity")


def chosen_mixers() -> str:
    """Everything in the mixers of a small Mamba pruned, as a whole and part by part."""
    return _compared(read("structure_methods.json")["mixers"], "kl", "perplexity")


def chosen_language() -> str:
    """Ways to the same number of parameters of the model inside the package."""
    return _compared(read("structure_methods.json")["language"], "kl", "perplexity")


def chosen_second() -> str:
    """The same of a model that nothing was tuned on."""
    return _compared(read("structure_methods.json")["second"], "kl", "perplexity")


def slices() -> str:
    """One rotation for a whole model beside one for each norm."""
    return _compared(read("structure_methods.json")["slices"], "kl", "perplexity")


def _compared(part: dict[str, Any], error: str, quality: str) -> str:
    """What each case loses, and what it loses more or less than another."""
    words = {"kl": "KL divergence", "relative_error": "relative error of the logits"}[error]
    cases = {name: case for name, case in part.items() if isinstance(case, dict) and "results" in case}
    rows = [
        [name, method, f"{found[quality]['value']:.3f}", f"{found[error]['value']:.4f}"]
        for name, case in cases.items()
        for method, found in case["results"].items()
    ]
    pairs = [
        [name, pair, interval(found[f"{error}_difference"], 4)]
        for name, case in cases.items()
        for pair, found in case["differences"].items()
    ]
    rows, pairs = ([[cell.replace("|", "\\|") for cell in row] for row in found] for found in (rows, pairs))
    return "\n\n".join([table(["what goes", "by", quality, words], rows), table(["what goes", "paired", words], pairs)])


TABLES = {
    "structure speed": structure_speed,
    "structure": structure,
    "chain": chain,
    "torch-pruning": torch_pruning,
    "chosen digits": chosen_digits,
    "distilled digits": distilled_digits,
    "chosen states": chosen_states,
    "chosen mixers": chosen_mixers,
    "chosen language": chosen_language,
    "slices": slices,
    "chosen second": chosen_second,
}
