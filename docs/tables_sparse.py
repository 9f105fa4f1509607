"""Tables of pruning: from the file that bench/sparse.py writes."""

from __future__ import annotations

from result_files import interval, read, table

PRUNED = {"embedded": "The model inside the package", "shakespeare-1m": "`shakespeare-1m`, which nothing here was tuned on"}
"""The models that are pruned, by their part of the results."""


def sparse() -> str:
    """Every method at every amount, plain and back-solved, on each model."""
    parts = []
    for name, words in PRUNED.items():
        found = read("sparse.json")[name]
        rows = []
        for row in found["amounts"]:
            amount = row["amount"] if isinstance(row["amount"], str) else f"{100 * row['amount']:.0f} %"
            cells = [f"{row[kind]['perplexity']['value']:.2f} / {row[kind]['kl']['value']:.4f}" for kind in ("plain", "back_solve")]
            rows.append([amount, f"`{row['method']}`", *cells, interval(row["back_solve minus plain"]["kl_difference"], 4)])
        head = ["zeros", "method", "perplexity / KL divergence", "back-solved", "what that changes in the divergence"]
        before = found["amounts"][0]["plain"]["perplexity_before"]["value"]
        parts += [f"{words}, whose perplexity is {before:.2f}:", table(head, rows)]
        if len(rows) < 20:
            parts.append("What is missing above was not run.")
    return "\n\n".join(parts)


def sparsity_shares() -> str:
    """Every way to share sparsity among blocks, on each model, paired differences, and what each block costs by itself."""
    parts = []
    for name, words in PRUNED.items():
        found = read("sparse.json")[name]["shares"]
        names = list(found[0]["results"])
        rows = []
        for share in names:
            each = [row["results"][share] for row in found]
            blocks = ", ".join(f"{zeros:.2f}" for zeros in each[0]["sparsity_by_block"])
            rows.append([f"`{share}`", blocks, *(f"{one['perplexity']['value']:.2f} / {one['kl']['value']:.4f}" for one in each)])
        head = ["shared by", "zeros of each block", *(f"`{row['method']}`, perplexity / KL divergence" for row in found)]
        pairs = [[pair, *(interval(row["differences"][pair]["kl_difference"], 4) for row in found)] for pair in found[0]["differences"]]
        paired = table(["KL divergence, paired", *(f"`{row['method']}`" for row in found)], pairs)
        alone = [
            [
                f"{number}",
                f"{one['kl']['value']:.4f} [{one['kl']['low']:.4f}, {one['kl']['high']:.4f}]",
                f"{one['alpha']:.2f}",
                f"{one['farms_alpha']:.2f}",
            ]
            for number, one in enumerate(read("sparse.json")[name]["alone"])
        ]
        head_alone = ["block", "KL divergence when it alone is pruned by `wanda`", "alpha of `alpha_pruning`", "alpha of `farms`"]
        parts += [f"{words}:", table(head, rows), paired, *([table(head_alone, alone)] if alone else [])]
    return "\n\n".join(parts)


TABLES = {"sparse": sparse, "sparsity shares": sparsity_shares}
