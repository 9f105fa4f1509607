"""The table at the head of everything: size, quality and speed of the original and of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from thrifty.measure.certificate import Certificate, Value
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.language import RESERVED
from thrifty.report.numbers import MISSING, duration, interval, number, percent, plain, shrinkage, size, span, words

_SPEEDS = {
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "rows_per_second": "rows/s",
}
_METRICS = {
    "output_relative_error": "relative error of the output",
    "accuracy": "accuracy",
    "next_token_accuracy": "next-token accuracy",
    "same_continuation": "same continuation, share of tokens",
}
# Families whose settings say what is stored.
_OUTCOMES = ("weights.preset", "weights.target")


@dataclass(frozen=True)
class Row:
    """One line of the table; `change` says the difference in words."""

    what: str
    before: str
    after: str
    change: str = ""


def headline(certificate: Certificate) -> list[Row]:
    """The lines that apply to this result, in the order in which they are read."""
    return [*_sizes(certificate), *_quality(certificate), *_safety(certificate), *_speed(certificate)]


LINKS = ("after", "weight files", "perplexity", "KL from the original", "time")
"""The columns of the table of a chain."""


def link_rows(certificate: Certificate) -> list[tuple[str, str, str, str, str]]:
    """What each link of a chain cost, one row a link; empty for a result that was made in one go."""
    return [
        (
            link.words,
            MISSING if link.bytes is None else size(link.bytes),
            MISSING if link.perplexity is None else interval(link.perplexity),
            MISSING if link.kl is None else interval(link.kl),
            duration(link.seconds),
        )
        for link in certificate.links
    ]


def markdown(certificate: Certificate) -> str:
    """The headline as a Markdown table."""
    rows = [[cell.replace("|", "\\|") for cell in (row.what, row.before, row.after, row.change)] for row in headline(certificate)]
    return "\n".join(["| | original | result | change |", "|---|---:|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _sizes(certificate: Certificate) -> list[Row]:
    rows = []
    if certificate.bytes is not None:
        before, after = certificate.bytes.before, certificate.bytes.after
        rows.append(Row("weight files", size(before), size(after), shrinkage(before, after)))
    if certificate.bits_per_weight is not None:
        rows.append(Row("stored bits per compressed weight", "", number(certificate.bits_per_weight)))
    for what, count in certificate.structure.items():
        rows.append(Row(what, f"{count.before:,}", f"{count.after:,}"))
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
            what = _METRICS.get(row.metric, words(row.metric))
            rows.append(Row(what, number(row.before), number(row.after), span(row.difference, row.low, row.high)))
    return rows


def _safety(certificate: Certificate) -> list[Row]:
    found = certificate.safety
    if found is None or "refusal" not in found:
        return []
    why = f": {'; '.join(found['reasons'])}" if found["reasons"] else ""
    refusal, over = found["refusal"], found["over_refusal"]
    return [
        Row("refused of what should be", percent(refusal["before"]), percent(refusal["after"]), f"{found['verdict']}{why}"),
        Row("refused of what is harmless", percent(over["before"]), percent(over["after"])),
    ]


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
    for key, what in _SPEEDS.items():
        pair = (certificate.speed or {}).get(key)
        if isinstance(pair, dict):
            before, after = pair.get("before"), pair.get("after")
            rows.append(Row(what, number(before), number(after), f"{after / before:.2f}x" if before and after else ""))
    return rows


def recipe_line(recipe: str) -> str:
    """A recipe in one line: the methods in order. What the weights end up as is always said, how they get there where it is unusual."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError:
        content = None
    steps = content.get("steps") if isinstance(content, Mapping) else content
    if not isinstance(steps, list):
        return _shorten(" ".join(recipe.split()))
    return _shorten(" + ".join(_step(step) for step in steps))


def _step(step: Any) -> str:
    if not isinstance(step, Mapping):
        return str(step)
    parts = [_method(str(name), settings) for name, settings in step.items() if name not in RESERVED]
    parts += [f"{word} {_selection(step[word])}" for word in RESERVED if step.get(word)]
    return ", ".join(parts)


def _selection(chosen: Any) -> str:
    """Patterns of linears as they are written, with their settings where they have any."""
    if isinstance(chosen, Mapping):
        return ", ".join(f"{pattern} ({plain(settings)})" for pattern, settings in chosen.items())
    return plain(chosen)


def _method(name: str, settings: Any) -> str:
    """A method with the settings that tell it from its usual form."""
    method = load_methods().get(name)
    defaults = {} if method is None else {key: schema.get("default") for key, schema in method.parameters().items()}
    telling = list(defaults)[:2] if method is not None and method.family in _OUTCOMES else []
    shown = []
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        if isinstance(value, Mapping) and len(value) == 1:
            [(part, inner)] = value.items()
            shown.append(f"{words(key)} {_method(str(part), inner)}")
        elif value is not None and (key in telling or key not in defaults or value != defaults[key]):
            shown.append(f"{words(key)} {plain(value)}")
    return f"{name} ({', '.join(shown)})" if shown else name


def _shorten(text: str, width: int = 100) -> str:
    return (text if len(text) <= width else text[: width - 3] + "...") or MISSING
