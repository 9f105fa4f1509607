"""The table of packed caches: from the file under bench/results."""

from __future__ import annotations

from result_files import interval, read, table


def cache() -> str:
    """What each cache loses, holds and takes, and differences on the same windows."""
    found = read("cache.json")
    contexts = list(found["rows"][0]["milliseconds_per_token"])
    rows = [
        [
            row["name"] if "recipe" not in row else f"`{row['recipe']}`",
            *(f"{row['cache_bytes_per_token'][context]:,.0f}" for context in contexts),
            f"{row['perplexity']['value']:.3f}",
            f"{row['kl']['value']:.5f}",
            *(f"{row['milliseconds_per_token'][context]:.1f} ms" for context in contexts),
        ]
        for row in found["rows"]
    ]
    after = [f"after {int(context):,}" for context in contexts]
    head = ["cache", *(f"bytes a token {at}" for at in after), "perplexity", "KL from plain", *(f"a new token {at}" for at in after)]
    pairs = [
        [pair, interval(one["perplexity_difference"], 4), interval(one["kl_difference"], 5)] for pair, one in found["differences"].items()
    ]
    windows = found["evaluation"]
    said = (
        f"{windows['rows']} windows of {windows['tokens'] // windows['rows']} tokens, of which the first {found['prompt']} are read in one "
        f"call and not scored; {found['dtype']}. Bytes are those after {found['new_tokens']} more tokens, plain ones included; "
        f"transformers keeps {found['new_tokens']} plain then, and up to 128. Time is that of the processor, in one thread, median of "
        f"{found['rounds']} rounds."
    )
    return "\n\n".join([table(head, rows), table(["paired", "perplexity", "KL divergence"], pairs), said])


TABLES = {"cache": cache}
