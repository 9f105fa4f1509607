"""The tables of the documentation and of the README, made from the committed results of the scripts under bench/.

`python docs/tables.py` brings the README up to date; a test holds it there.
"""

from __future__ import annotations

import re
from pathlib import Path

import tables_bits
import tables_cache
import tables_sparse
import tables_structure
import tables_training
import tables_vision
from result_files import interval, read, table

ROOT = Path(__file__).parent.parent


def quality() -> str:
    """GPTQ and SparseGPT beside llm-compressor."""
    return _paired("quality_llm_compressor.json", "llm-compressor")


def auto_round() -> str:
    """GPTQ beside auto-round, and the time of the calls."""
    found = read("quality_auto_round.json")
    rows = [
        [
            row["request"],
            *(f"{row['calls'][who]['call_seconds']:.0f} s" for who in ("thrifty", "auto-round")),
            f"{row['calls']['call_ratio']:.3f}",
        ]
        for row in found["rows"]
    ]
    return "\n\n".join([_paired("quality_auto_round.json", "auto-round"), table(["request", "call here", "auto-round", "ratio"], rows)])


def auto_round_cost() -> str:
    """Time and memory of the calls on the large model."""
    found = read("cost_auto_round.json")
    calls = found["calls"]
    rows = [
        ["the call", *(f"{calls[who]['call_seconds']:.0f} s" for who in ("thrifty", "auto-round")), f"{found['call_ratio']:.2f}"],
        [
            "the whole command",
            *(f"{calls[who]['total_seconds']:.0f} s" for who in ("thrifty", "auto-round")),
            f"{found['total_ratio']:.2f}",
        ],
        ["peak memory", *(f"{calls[who]['peak_bytes'] / 1e9:.2f} GB" for who in ("thrifty", "auto-round")), f"{found['peak_ratio']:.2f}"],
    ]
    return table([f"{found['tokens']:,} tokens", "here", f"auto-round, {found['iterations']} steps a block", "ratio"], rows)


def _paired(file: str, peer: str) -> str:
    """Perplexity and divergence of both, and their paired differences."""
    found = read(file)
    rows = []
    for row in found["rows"]:
        ours, theirs, beside = row["thrifty"], row[peer], row[f"thrifty minus {peer}"]
        rows.append(
            [
                row["request"],
                f"{ours['perplexity']['value']:.3f}",
                f"{theirs['perplexity']['value']:.3f}",
                interval(beside["perplexity_difference"], 3),
                f"{ours['kl']['value']:.4f}",
                f"{theirs['kl']['value']:.4f}",
                interval(beside["kl_difference"], 4),
            ]
        )
    head = ["request", "perplexity here", peer, "difference", "KL here", peer, "difference"]
    before = found["rows"][0]["thrifty"]["perplexity_before"]["value"]
    windows = found["evaluation"]
    return f"{table(head, rows)}\n\nThe original has perplexity {before:.3f}; {windows['rows']} windows, {windows['tokens']} tokens."


def cost() -> str:
    """Seconds, peak memory and ratios of each request."""
    rows = []
    for row in read("cost_llm_compressor.json")["rows"]:
        ours, theirs = row["thrifty"], row["llm-compressor"]
        rows.append(
            [
                f"{row['model']}, {row['method']}, {row['tokens']:,} tokens",
                f"{ours['call_seconds']:.1f} s / {theirs['call_seconds']:.1f} s",
                f"{row['call_ratio']:.2f}",
                f"{row['solve_ratio']:.2f}",
                f"{row['whole_command_ratio']:.2f}",
                f"{ours['peak_bytes'] / 1e9:.2f} GB / {theirs['peak_bytes'] / 1e9:.2f} GB",
                f"{row['peak_ratio']:.2f}",
            ]
        )
    return table(["request", "call", "ratio", "solve, ratio", "whole command, ratio", "peak memory", "ratio"], rows)


def phases() -> str:
    """Where the seconds go, and what share of them the arithmetic alone would take at the rate of the machine's matrix products."""
    rows = []
    for row in read("cost_llm_compressor.json")["rows"]:
        for who in ("thrifty", "llm-compressor"):
            seconds, share = row[who]["phases"], row[who]["limit_over_measured"]
            request = f"{row['model']}, {row['method']}, {row['tokens']:,} tokens"
            rows.append([request, who, *(f"{seconds[phase]:.1f} s, {share[phase]:.0%}" for phase in ("forward", "gram", "solve"))])
    return table(["request", "tool", "forward", "gram", "solve"], rows)


def memory() -> str:
    """Runs of different depth: what was planned and what was needed."""
    rows = [
        [
            str(row["layers"]),
            f"{row['checkpoint_bytes'] / 1e9:.2f} GB",
            f"{row['peak_rss_bytes'] / 1e9:.3f} GB",
            f"{row['planned_memory_bytes'] / 1e9:.3f} GB",
            f"{row['result_bytes'] / 1e6:.1f} MB",
            f"{row['planned_output_bytes'] / 1e6:.1f} MB",
        ]
        for row in read("memory.json")["rows"]
    ]
    return table(["blocks", "checkpoint", "peak memory", "planned", "result", "planned"], rows)


def memory_budget() -> str:
    """Peak memory and speed with more and more left on disk."""
    tables = []
    for name, model in list(read("memory_budget.json")["models"].items())[:1]:  # the other is too small to show anything
        rows = []
        for row in model["rows"]:
            place = row["placement"]
            rows.append(
                [
                    "everything in memory" if place is None else place["words"].split(" on disk;")[0],
                    f"{row['peak_rss_bytes'] / 1e6:.0f} MB",
                    "" if place is None else f"{place['bytes'] / 1e6:.0f} MB",
                    f"{(row['peak_rss_bytes'] - row['process_bytes']) / 1e6:.0f} MB",
                    f"{row['prefill_processor_seconds']:.2f} s",
                    f"{1000 * row['decode_processor_seconds_per_token']:.0f} ms",
                    f"{1 / row['decode_processor_seconds_per_token']:.1f}",
                ]
            )
        head = [
            f"{name}: on disk",
            "peak",
            "expected",
            "above the start",
            "prompt, processor",
            "new token, processor",
            "tokens a second of it",
        ]
        said = f"{model['checkpoint_bytes'] / 1e6:.0f} MB of weights, {model['prompt_tokens']} tokens and {model['new_tokens']} new ones."
        tables += [table(head, rows), said]
    return "\n\n".join(tables)


def plan() -> str:
    """What was planned and what was needed, by kind of model."""
    rows = []
    for name, row in read("plan.json")["models"].items():
        planned, used, ratio = row["planned"], row["used"], row["planned_to_used"]
        rows.append(
            [
                name,
                f"{used['memory'] / 1e6:.0f} MB",
                f"{ratio['memory'] - 1:+.1%}",
                f"{used['disk'] / 1e6:.1f} MB",
                f"{ratio['disk'] - 1:+.2%}",
                f"{ratio['output'] - 1:+.2%}",
                f"{used['seconds']:.0f} s",
                f"{planned['seconds']:.0f} s",
            ]
        )
    return table(["model", "peak memory", "plan", "disk", "plan", "plan of the result's size", "time", "plan"], rows)


def inference() -> str:
    """Seconds of a generation, and what the fast path loses."""
    found = read("inference.json")
    beside = found["beside_llama_cpp"]

    def rows(seconds: dict[str, dict[str, float]]) -> list[list[str]]:
        return [[name, *(f"{taken[phase] * 1e3:.0f} ms" for phase in ("prefill", "decode", "whole"))] for name, taken in seconds.items()]

    lost = [[name, f"{kl['prompt']['value']:.2g}", f"{kl['new tokens']['value']:.2g}"] for name, kl in found["kl_of_the_fast_path"].items()]
    head = ["", f"{found['prompt_tokens']} tokens at once", f"{found['new_tokens'] - 1} tokens one by one", "both"]
    told = [table(head, rows(found["seconds"])), table(["KL divergence from float32", "over the prompt", "over the new tokens"], lost)]
    if beside["seconds"] != found["seconds"]:
        told += ["An earlier run, in which llama.cpp took its turn:", table(head, rows(beside["seconds"]))]
    return "\n\n".join(told)


def llama_cpp() -> str:
    """Perplexity of GGUF files there and of the same weights here."""
    rows = [
        [row["format"], f"{row['file_bytes'] / 1e6:.2f} MB", f"{row['here']:.4f}", f"{row['llama_cpp']:.4f}", f"{row['ratio'] - 1:+.3%}"]
        for row in read("perplexity_llama_cpp.json")["rows"]
    ]
    return table(["format", "file", "perplexity here", "in llama.cpp", "difference"], rows)


def llama_cpp_families() -> str:
    """A small model of each family in llama.cpp: the largest differences over all formats."""
    rows = [
        [
            family["family"],
            f"{family['rows'][0]['here']:.2f}",
            ", ".join(row["format"] for row in family["rows"]),
            f"{max((row['ratio'] - 1 for row in family['rows']), key=abs):+.3%}",
            f"{max(row['kl'] for row in family['rows']):.1g}",
            f"{family['texts_cut_alike']} of {family['texts']}",
        ]
        for family in read("perplexity_llama_cpp.json")["families"]
    ]
    return table(
        ["family", "perplexity here", "formats", "largest difference there", "largest KL divergence", "texts cut into the same tokens"],
        rows,
    )


def versions() -> str:
    """The oldest and the newest versions that the tests were run with."""
    found = read("versions.json")
    both = [found[which] for which in ("oldest", "newest")]
    rows = [[name, *(one["versions"][name] for one in both)] for name in both[0]["versions"]]
    ran = [f"{one['tests']['tests']} run, {one['tests']['failures'] + one['tests']['errors']} failed" for one in both]
    return table(["", "oldest", "newest"], [*rows, ["tests", *ran]])


def machine() -> str:
    """What the figures were measured on."""
    found = read("recipes.json")["hardware"]
    return f"{found['usable_cores']} cores of {found['cpu']} ({found['cpu_capability']}), {found['ram_bytes'] / 1e9:.0f} GB"


def recipes() -> str:
    """Every shipped recipe on the embedded model."""
    results = read("recipes.json")["results"]
    first = next(iter(results.values()))
    original = [
        "the original",
        f"{first['bytes']['before'] / 1e6:.2f} MB",
        "16",
        f"{first['perplexity']['before']['value']:.2f}",
        "0",
        "100 %",
        "",
        "",
    ]
    rows = [
        [
            f"`{name}`",
            f"{found['bytes']['after'] / 1e6:.2f} MB",
            f"{found['bits_per_weight']:.2f}",
            f"{found['perplexity']['after']['value']:.2f}",
            f"{found['kl']['value']:.4f}",
            f"{100 * found['top1_agreement']:.1f} %",
            "{after:.0f} / {before:.0f}".format(**found["speed"]["decode_tokens_per_second"]),
            f"{found['seconds']:.0f} s",
        ]
        for name, found in results.items()
    ]
    head = ["recipe", "size", "bits per weight", "perplexity", "KL divergence", "same top token", "tokens/s / original", "made in"]
    return table(head, [original, *rows])


def on_cuda() -> str:
    """The same run on the processor and on a CUDA device, and on one with little memory."""
    found = read("on_cuda.json")
    names = ("forward", "gram", "solve", "evaluate")
    rows = []
    for job, words in (("embedded", "the model inside the package"), ("large", "300 million parameters")):
        for where, run in found[job].items():
            rows.append(
                [words, where, f"{run['seconds']:.0f} s", *(f"{run['phases'][name]:.1f} s" for name in names), f"{run['kl']['value']:.4f}"]
            )
    short = found["short"]
    said = [warning for warning in short["warnings"] if "out of memory" in warning]
    head = ["model", "on", "whole call", *names, "KL divergence"]
    device = f"{found['device']}, beside {found['threads']} threads of the same machine."
    said = f"With 350 MB of the device the second model took {short['seconds']:.0f} s; it said: {'; '.join(said)}."
    return f"{table(head, rows)}\n\n{device} {said}"


def relevance() -> str:
    """How well core and near papers are told from the rest."""
    found = read("relevance.json")
    ways = {
        "key and background words as they are": found["literal filter"],
        f"score of at least {found['score at the default threshold']['threshold']:g}": found["score at the default threshold"],
        "score, threshold set on the other four of five folds": found["score, five folds"],
    }
    rows = [
        [
            name,
            f"{way['kept']} of {found['papers']}",
            f"{way['precision']:.3f}",
            f"{way['recall']:.3f}",
            f"{way['f1']:.3f}",
            ", ".join(way["core_lost"]) or "none",
        ]
        for name, way in ways.items()
    ]
    return table(["kept if", "kept", "precision", "recall", "F1", "core papers lost"], rows)


def papers_cost() -> str:
    """What 10,000 records cost."""
    found, page = read("papers.json"), read("papers_page.json")
    searches = found["search_seconds"]
    rows = [
        ["importing them", f"{found['import_seconds']:.1f} s"],
        ["opening the library and reading it into the index", f"{found['open_seconds'] + found['index_seconds']:.1f} s"],
        [f"a search, slowest of {len(searches)} queries (median of {found['repeats']})", f"{max(searches.values()) * 1e3:.0f} ms"],
        ["a keystroke in the page, median and slowest", f"{page['median_ms']:.0f} ms and {page['max_ms']:.0f} ms"],
        ["the page", f"{page['bytes'] / 1e6:.0f} MB"],
    ]
    return table([f"{found['records']:,} records", ""], rows)


TABLES = {
    "machine": machine,
    "recipes": recipes,
    "quality": quality,
    "auto-round": auto_round,
    "auto-round cost": auto_round_cost,
    "cost": cost,
    "phases": phases,
    "memory": memory,
    "memory budget": memory_budget,
    "plan": plan,
    "inference": inference,
    "llama.cpp": llama_cpp,
    "llama.cpp families": llama_cpp_families,
    "versions": versions,
    "on cuda": on_cuda,
    "relevance": relevance,
    "papers": papers_cost,
    **tables_bits.TABLES,
    **tables_training.TABLES,
    **tables_vision.TABLES,
    **tables_sparse.TABLES,
    **tables_structure.TABLES,
    **tables_cache.TABLES,
}


def fill(markdown: str) -> str:
    """Put each table where a page asks for it."""
    for name, make in TABLES.items():
        mark = f"<!-- table: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def readme() -> str:
    """The README with its table as the results have it."""
    text = (ROOT / "README.md").read_text()
    return re.sub(
        r"(<!-- table: recipes -->\n).*?(<!-- end of table -->)",
        lambda found: f"{found[1]}\n{recipes()}\n\n{found[2]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme())
