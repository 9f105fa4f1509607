"""Several results side by side: one table and one page from their certificates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.base.errors import InputError
from thrifty.base.store import write_text
from thrifty.measure.certificate import Certificate, Value
from thrifty.report.headline import recipe_line
from thrifty.report.numbers import duration, interval, number, percent, size
from thrifty.report.page import render
from thrifty.report.plots import Plot, Point, tradeoff_plot


@dataclass(frozen=True)
class Result:
    """One result folder and its certificate."""

    name: str
    certificate: Certificate

    @property
    def perplexity(self) -> Value | None:
        """Perplexity of the result."""
        return self.certificate.perplexity.after if self.certificate.perplexity else None

    @property
    def decode(self) -> float | None:
        """Decode speed of the result, tokens a second."""
        pair = (self.certificate.speed or {}).get("decode_tokens_per_second")
        return pair.get("after") if isinstance(pair, dict) else None

    @property
    def relative_error(self) -> Value | None:
        """Relative error of the output, where there are no next-token logits."""
        return self.certificate.relative_error


@dataclass(frozen=True)
class Column:
    """A column of the table: its key in JSON, its heading, and how its value is read and shown."""

    key: str
    words: str
    read: Callable[[Result], Any]
    show: Callable[[Any], str]
    figure: bool = True


_COLUMNS = (
    Column("name", "result", lambda result: result.name, str, False),
    Column("recipe", "recipe", lambda result: recipe_line(result.certificate.recipe), str, False),
    Column("bytes", "weight files", lambda result: result.certificate.bytes and result.certificate.bytes.after, size),
    Column("bits_per_weight", "bits per weight", lambda result: result.certificate.bits_per_weight, number),
    Column("perplexity", "perplexity", lambda result: result.perplexity, interval),
    Column("perplexity_ratio", "ratio to the original", lambda result: result.certificate.perplexity_ratio, interval),
    Column("kl", "KL, nats", lambda result: result.certificate.kl, interval),
    Column("top1_agreement", "same prediction", lambda result: result.certificate.top1_agreement, percent),
    Column("relative_error", "relative error of the output", lambda result: result.relative_error, interval),
    Column("decode_tokens_per_second", "decode, tokens/s", lambda result: result.decode, number),
    Column("seconds", "time", lambda result: result.certificate.seconds, duration),
    Column("peak_rss_bytes", "peak memory", lambda result: result.certificate.peak_rss_bytes, size),
)


@dataclass(frozen=True)
class Comparison:
    """Results in the order in which they were given, and what keeps them from being compared as they stand."""

    results: tuple[Result, ...]
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns for which at least one result has a value."""
        return tuple(column for column in _COLUMNS if any(column.read(result) is not None for result in self.results))

    def to_json(self) -> dict[str, Any]:
        """{results: [{name, model, recipe, bytes, ...}], notes}."""
        rows = []
        for result in self.results:
            values = {column.key: column.read(result) for column in _COLUMNS}
            plain = {key: value.model_dump() if isinstance(value, Value) else value for key, value in values.items()}
            rows.append({"model": result.certificate.model.name, **plain, "recipe": result.certificate.recipe})
        return {"results": rows, "notes": list(self.notes)}


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read the certificates of several result folders.

    Raises InputError when no folder is given, or one holds no certificate.
    """
    if not folders:
        raise InputError("compare needs at least one result folder")
    names = _names([Path(folder) for folder in folders])
    results = tuple(Result(name, Certificate.read(folder)) for name, folder in zip(names, folders, strict=True))
    return Comparison(results, tuple(_notes(results)))


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path; the whole path where two are alike."""
    short = [folder.resolve().name for folder in folders]
    return [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]


def _notes(results: Sequence[Result]) -> list[str]:
    notes = []
    if len({result.certificate.model.digest for result in results}) > 1:
        notes.append("The results come from different models: compare ratios to the original rather than perplexities.")
    evaluations = {data.digest if (data := result.certificate.data.evaluation) else None for result in results}
    if len(evaluations) > 1:
        notes.append("They were not measured on the same text: their perplexity and KL divergence do not compare.")
    if len({(result.certificate.hardware.get("cpu"), result.certificate.hardware.get("threads")) for result in results}) > 1:
        notes.append("They were made on different hardware or with different thread counts: times and speeds do not compare.")
    for result in results:
        if any(layer.simulated for layer in result.certificate.layers):
            notes.append(f"{result.name} holds simulated layers, which are stored dense: its size is not what its bits promise.")
        if result.certificate.gate is not None and not result.certificate.gate.passed:
            notes.append(f"{result.name} did not meet its limit: {result.certificate.gate.reason}.")
    return notes


def render_comparison(comparison: Comparison) -> str:
    """The page as HTML text."""
    columns = comparison.columns
    rows = [[_cell(column, result) for column in columns] for result in comparison.results]
    return render(
        "compare.html.j2",
        title=f"{len(rows)} results compared" if len(rows) > 1 else "One result",
        models=list(dict.fromkeys(result.certificate.model.name for result in comparison.results)),
        notes=comparison.notes,
        columns=columns,
        rows=rows,
        plots=_plots(comparison),
    )


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write the page atomically."""
    path = Path(path)
    write_text(path, render_comparison(comparison))
    return path


def _cell(column: Column, result: Result) -> dict[str, Any]:
    value = column.read(result)
    sort = value.value if isinstance(value, Value) else value
    return {"figure": column.figure, "value": -1 if sort is None else sort, "text": column.show(value)}


def _plots(comparison: Comparison) -> list[Plot]:
    found = []
    for quality, read in (("perplexity", lambda result: result.perplexity), ("KL divergence", lambda result: result.certificate.kl)):
        points = [
            Point(result.name, result.certificate.bytes.after / 1e6, value)
            for result in comparison.results
            if result.certificate.bytes is not None and (value := read(result)) is not None
        ]
        found.append(tradeoff_plot(points, _original(comparison) if quality == "perplexity" else None, quality))
    return [plot for plot in found if plot is not None]


def _original(comparison: Comparison) -> Point | None:
    """The original, where all results have the same one, measured on the same text."""
    found = {
        (certificate.perplexity.before.value, certificate.bytes.before)
        for result in comparison.results
        if (certificate := result.certificate).perplexity is not None and certificate.bytes is not None
    }
    if len(found) != 1:
        return None
    value, count = found.pop()
    return Point("original", count / 1e6, Value(value=value))
