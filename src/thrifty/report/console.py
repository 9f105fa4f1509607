"""The same tables on the console, as rich renderables."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.measure.certificate import Certificate
from thrifty.report.compare import Comparison
from thrifty.report.headline import headline, recipe_line
from thrifty.report.numbers import duration, number, percent, size
from thrifty.report.plots import layer_role

WORST = 5


def render_certificate(certificate: Certificate, out: str = "") -> RenderableType:
    """Headline table, the layers with the largest error, what the run took, the gate and the warnings."""
    table = Table(box=box.SIMPLE_HEAD, title=Text(f"{certificate.model.name}{f' -> {out}' if out else ''}"), title_justify="left")
    for heading in ("", "original", "result", "change"):
        table.add_column(
            heading, justify="right" if heading in ("original", "result") else "left", no_wrap=heading in ("original", "result")
        )
    for row in headline(certificate):
        table.add_row(Text(row.what), Text(row.before), Text(row.after, style="bold"), Text(row.change))
    facts = f"{recipe_line(certificate.recipe)}; {duration(certificate.seconds)}, peak memory {size(certificate.peak_rss_bytes)}"
    parts: list[RenderableType] = [table, Text(facts, style="dim")]
    if certificate.layers:
        parts.append(_worst(certificate))
    if certificate.gate is not None:
        word, style = ("within the limit", "green") if certificate.gate.passed else ("limit not met", "bold red")
        parts.append(Text(f"{word}: {certificate.gate.reason}", style=style))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in certificate.warnings]
    return Group(*parts)


def _worst(certificate: Certificate) -> Table:
    measured = [layer for layer in certificate.layers if layer.relative_error is not None]
    table = Table(box=box.SIMPLE_HEAD, title=f"largest errors of {len(certificate.layers)} layers", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("role")
    for heading in ("bits", "zeros", "relative error"):
        table.add_column(heading, justify="right")
    for layer in sorted(measured, key=lambda layer: -layer.relative_error)[:WORST]:
        table.add_row(Text(layer.name), layer_role(layer), number(layer.bits), percent(layer.sparsity), number(layer.relative_error))
    return table


def render_comparison(comparison: Comparison) -> RenderableType:
    """One line a result."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in comparison.columns:
        table.add_column(column.words, justify="right" if column.figure else "left", overflow="fold")
    for result in comparison.results:
        table.add_row(*(Text(column.show(column.read(result))) for column in comparison.columns))
    return Group(table, *(Text(note, style="yellow") for note in comparison.notes))
