"""The same tables on the console, as rich renderables."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.measure.certificate import Certificate, Layer
from thrifty.report.compare import Comparison, Result
from thrifty.report.headline import LINKS, headline, link_rows, recipe_line
from thrifty.report.numbers import duration, number, percent, size
from thrifty.report.page import FILE

WORST = 5
SIDE_BY_SIDE = 3


def render_certificate(certificate: Certificate, out: str | Path | None = None) -> RenderableType:
    """Headline table, recipe and cost, the layers with the largest error, the warnings, the gate, and where the page is.

    out: the result folder, where the certificate stands in one.
    """
    where = "" if out is None else f" -> {out}"
    table = Table(box=box.SIMPLE_HEAD, title=Text(f"{certificate.model.name}{where}"), title_justify="left")
    table.add_column("")
    table.add_column("original", justify="right", no_wrap=True)
    table.add_column("result", justify="right", no_wrap=True)
    table.add_column("change")
    for row in headline(certificate):
        table.add_row(Text(row.what), Text(row.before), Text(row.after, style="bold"), Text(row.change))
    cost = f"{duration(certificate.seconds)}, peak memory {size(certificate.peak_rss_bytes)}"
    parts: list[RenderableType] = [table, Text(recipe_line(certificate.recipe)), Text(cost, style="dim")]
    if certificate.links:
        steps = Table(box=box.SIMPLE_HEAD, title="step by step", title_justify="left")
        for place, column in enumerate(LINKS):
            steps.add_column(column, justify="right" if place else "left")
        for cells in link_rows(certificate):
            steps.add_row(*map(Text, cells))
        parts.append(steps)
    measured = [(layer.relative_error, layer) for layer in certificate.layers if layer.relative_error is not None]
    if measured:
        worst = sorted(measured, key=lambda pair: -pair[0])[:WORST]
        parts.append(_layers([layer for _, layer in worst], f"largest errors of {len(certificate.layers)} layers"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in certificate.warnings]
    if certificate.gate is not None:
        said, style = ("within the limit", "green") if certificate.gate.passed else ("limit not met", "bold red")
        parts.append(Text(f"{said}: {certificate.gate.reason}", style=style))
    if out is not None:
        parts.append(Text(f"every layer, with plots: {Path(out) / FILE}", style="dim"))
    return Group(*parts)


def _layers(layers: list[Layer], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("method")
    for heading in ("bits", "zeros", "relative error"):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(Text(layer.name), Text(layer.method), number(layer.bits), percent(layer.sparsity), number(layer.relative_error))
    return table


def render_comparison(comparison: Comparison) -> RenderableType:
    """One column a result, a few of them beside each other, and what to know before they are compared."""
    results = comparison.results
    tables = [_beside(comparison, results[start : start + SIDE_BY_SIDE]) for start in range(0, len(results), SIDE_BY_SIDE)]
    return Group(*tables, *(Text(f"note: {note}", style="yellow") for note in comparison.notes))


def _beside(comparison: Comparison, results: tuple[Result, ...]) -> Table:
    """The lines that every table of the comparison has, for some of its results."""
    [name, *columns] = comparison.columns
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for result in results:
        table.add_column(Text(name.show(name.read(result))), justify="right", overflow="fold")
    for column in columns:
        table.add_row(column.words, *(Text(column.show(column.read(result))) for result in results))
    return table
