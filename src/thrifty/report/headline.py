"""The table at the head of everything: size, quality and speed of the original and of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from thrifty.measure.certificate import Certificate, Value
from thrifty.report.numbers import MISSING, interval, number, percent, size

_SPEEDS = {
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "rows_per_second": "rows/s",
}
_METRICS = {"output_relative_error": "relative error of the output", "accuracy": "accuracy", "next_token_accuracy": "next-token accuracy"}


@dataclass(frozen=True)
class Row:
    """One line of the table; `change` says the difference in words."""

    what: str
    before: str
    after: str
    change: str = ""


def headline(certificate: Certificate) -> list[Row]:
    """The lines that apply to this result, in the order in which they are read."""
    return [*_sizes(certificate), *_quality(certificate), *_speed(certificate)]


def markdown(certificate: Certificate) -> str:
    """The headline as a Markdown table."""
    lines = ["| | original | result | change |", "|---|---:|---:|---|"]
    return "\n".join([*lines, *(f"| {row.what} | {row.before} | {row.after} | {row.change} |" for row in headline(certificate))])


def _sizes(certificate: Certificate) -> list[Row]:
    rows = []
    if certificate.bytes is not None:
        before, after = certificate.bytes.before, certificate.bytes.after
        rows.append(Row("weight files", size(before), size(after), f"{before / after:.2f}x smaller" if after else ""))
    if certificate.bits_per_weight is not None:
        rows.append(Row("stored bits per compressed weight", "", number(certificate.bits_per_weight)))
    return rows


def _quality(certificate: Certificate) -> list[Row]:
    rows, shown = [], {"kl", "top1_agreement", "perplexity_ratio"}
    if certificate.perplexity is not None:
        rows.append(
            Row(
                "perplexity",
                interval(certificate.perplexity.before),
                interval(certificate.perplexity.after),
                _rise(certificate.perplexity_ratio),
            )
        )
        shown.add("perplexity")
    if certificate.kl is not None:
        rows.append(Row("KL divergence from the original, nats", "", interval(certificate.kl)))
    if certificate.top1_agreement is not None:
        rows.append(Row("same most likely prediction", "", percent(certificate.top1_agreement), _flips(certificate)))
    for row in certificate.quality:
        if row.metric not in shown:
            difference = interval(Value(value=row.difference, low=row.low, high=row.high))
            rows.append(Row(_METRICS.get(row.metric, row.metric.replace("_", " ")), number(row.before), number(row.after), difference))
    return rows


def _rise(ratio: Value | None) -> str:
    if ratio is None or ratio.value is None:
        return ""
    ends = "" if ratio.low is None or ratio.high is None else f" [{percent(ratio.low - 1, 2, True)}, {percent(ratio.high - 1, 2, True)}]"
    return percent(ratio.value - 1, 2, True) + ends


def _flips(certificate: Certificate) -> str:
    if certificate.flips is None:
        return ""
    return f"{certificate.flips.right_to_wrong:,} right to wrong, {certificate.flips.wrong_to_right:,} wrong to right"


def _speed(certificate: Certificate) -> list[Row]:
    rows = []
    for key, words in _SPEEDS.items():
        pair = (certificate.speed or {}).get(key)
        if isinstance(pair, dict):
            before, after = pair.get("before"), pair.get("after")
            rows.append(Row(words, number(before), number(after), f"{after / before:.2f}x" if before and after else ""))
    return rows


def headline_markdown(certificate: Certificate) -> str:
    """The table in Markdown, for a model card."""
    lines = ["| | original | this model | |", "| --- | ---: | ---: | --- |"]
    for row in headline(certificate):
        cells = (row.what, row.before, row.after, row.change)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def recipe_line(recipe: str) -> str:
    """A recipe in one line: the methods in order, with their settings."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError:
        content = None
    steps = content.get("steps") if isinstance(content, dict) else content
    if not isinstance(steps, list):
        return _shorten(" ".join(recipe.split()))
    return _shorten(" + ".join(_step(step) for step in steps))


def _step(step: Any) -> str:
    if not isinstance(step, dict):
        return str(step)
    words = []
    for name, settings in step.items():
        if name in ("only", "skip", "override"):
            continue
        inner = ", ".join(f"{key} {value}" for key, value in settings.items()) if isinstance(settings, dict) else ""
        words.append(f"{name} ({inner})" if inner else str(name))
    return " ".join(words)


def _shorten(text: str, width: int = 100) -> str:
    return (text if len(text) <= width else text[: width - 3] + "...") or MISSING
