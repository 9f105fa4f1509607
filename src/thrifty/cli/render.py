"""What a command found, for the eye: on standard output. The same objects go out as plain values with --json."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from thrifty.report.numbers import duration, plain, quantity, size, words


def output() -> Console:
    """Standard output; a log gets wider lines than the 80 columns that rich assumes."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)


def print_json(value: Any) -> None:
    """One JSON value on standard output; a number that is not finite becomes null, which JSON can say."""
    print(json.dumps(_json(value), ensure_ascii=False, allow_nan=False))


def show(name: str, value: Any) -> None:
    """Print the value of the command `name`."""
    special = {
        "compress": _certificate,
        "plan": _plan,
        "try": _try,
        "describe": _anatomy,
        "compare": _comparison,
        "recipes": _recipes,
        "methods": _methods,
        "method": _method,
    }
    output().print(special.get(name, _anything)(value))


def _certificate(result: Mapping[str, Any]) -> RenderableType:
    from thrifty.measure.certificate import Certificate
    from thrifty.report.console import render_certificate

    return render_certificate(Certificate.read(result["out"]), result["out"])


def _comparison(comparison: Any) -> RenderableType:
    from thrifty.report.console import render_comparison

    return render_comparison(comparison)


def _anatomy(anatomy: Any) -> RenderableType:
    from thrifty.models.describe import describe

    return describe(anatomy)


def _plan(found: Any) -> RenderableType:
    """What will be done, then the price with what the memory is made of, then why it cannot be."""
    plan = _json(found)
    cost = plan.get("cost") or {}
    rest = {key: value for key, value in plan.items() if key not in ("cost", "refusals", "warnings")}
    sizes = {
        "peak memory": cost.get("memory"),
        "device memory": cost.get("device_memory"),
        "disk": cost.get("disk"),
        "size of the result": cost.get("output"),
    }
    price = {what: size(count) for what, count in sizes.items() if count is not None}
    if cost.get("seconds") is not None:
        price["time"] = duration(cost["seconds"])
    parts = sorted((cost.get("parts") or {}).items(), key=lambda part: -part[1])
    shown = [{"part of the memory": words(name), "bytes": count} for name, count in parts]
    refusals = [Text(f"refused: {reason}", style="red") for reason in plan.get("refusals") or ()]
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in plan.get("warnings") or ()]
    return Group(_anything(rest), _facts(price), *([_table(shown)] if shown else []), *warnings, *refusals)


def _try(result: Mapping[str, Any]) -> RenderableType:
    """Prompt, then the two answers side by side."""
    sides = {key: result[key] for key in ("original", "result")}
    grid = Table.grid(expand=True)
    panels = []
    for name, side in sides.items():
        grid.add_column(ratio=1)
        rest = {key: value for key, value in side.items() if key != "text"}
        panels.append(Panel(Group(Text(side["text"]), "", _facts(rest)), title=name))
    grid.add_row(*panels)
    more = {key: value for key, value in result.items() if key not in ("prompt", *sides)}
    return Group(Text(result["prompt"], style="bold"), grid, _facts(more))


def _recipes(entries: Sequence[Mapping[str, str]]) -> RenderableType:
    return _table([{"name": entry["name"], "summary": entry["summary"]} for entry in entries])


def _methods(entries: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Name, place, summary and source of each method."""
    ordered = sorted(entries, key=lambda entry: (entry["family"], entry["name"]))
    shown = [{key: entry[key] for key in ("name", "family", "summary")} | {"source": _source(entry["paper"], False)} for entry in ordered]
    return _table(shown)


def _method(entry: Mapping[str, Any]) -> RenderableType:
    """One method: explanation, source, and its settings."""
    head = _facts({"method": entry["name"], "family": entry["family"], "source": _source(entry["paper"], True) or "no paper"})
    settings = [
        {"setting": name, "default": _default(schema.get("default")), "meaning": _constraint(schema)}
        for name, schema in entry["parameters"].items()
    ]
    parts: list[RenderableType] = [head, Text(), Markdown(entry["explanation"])]
    return Group(*parts, _table(settings)) if settings else Group(*parts)


def _source(paper: Mapping[str, Any] | None, title: bool) -> str:
    """`Frantar, Alistarh (2023), arXiv 2301.00774`."""
    if paper is None:
        return ""
    parts = [f"{paper['authors']} ({paper['year']})", paper["title"] if title else None, paper.get("arxiv") and f"arXiv {paper['arxiv']}"]
    return ", ".join(part for part in parts if part)


def _default(value: Any) -> Any:
    """A method that is a default stands there by its name."""
    return ", ".join(value) if isinstance(value, Mapping) else value


def _constraint(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_constraint(option) for option in schema["anyOf"])
    kind = "none" if schema.get("type") == "null" else schema.get("type")
    parts = [schema.get("description"), f"any {schema['family']}" if "family" in schema else kind]
    if "enum" in schema:
        parts.append("one of " + ", ".join(map(str, schema["enum"])))
    limits = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    parts += [f"{limit} {schema[key]}" for key, limit in limits.items() if key in schema]
    return ", ".join(str(part) for part in parts if part)


def _anything(value: Any) -> RenderableType:
    """A mapping as facts, lists of mappings in it as tables."""
    value = _json(value)
    if _tabular(value):
        return _table(value)
    if not isinstance(value, Mapping):
        return Text(plain(value))
    tables = {key: item for key, item in value.items() if _tabular(item)}
    facts = {key: item for key, item in value.items() if key not in tables and item not in (None, [], {})}
    return Group(_facts(facts), *(_table(rows, words(key)) for key, rows in tables.items()))


def _tabular(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _facts(values: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for key, value in values.items():
        nested = isinstance(value, Mapping) and not {"value", "low", "high"} <= value.keys()
        grid.add_row(escape(words(key)), _facts(value) if nested else escape(quantity(key, value)))
    return grid


def _table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) and not isinstance(row.get(column), bool) for row in rows)
        heading = "size" if column == "bytes" else words(column)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(column, row.get(column))) for column in columns))
    return table


def _cell(key: str, value: Any) -> str:
    return "" if value is None else quantity(key, value)


def _json(value: Any) -> Any:
    """JSON values of anything that a command returns."""
    if hasattr(value, "to_json"):
        return _json(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return str(value) if isinstance(value, Path) else value
