"""What a command found, for the eye: tables on standard output. The same objects go out unchanged with --json."""

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

LAYERS_SHOWN = 5
RESERVED = ("only", "skip", "override")


def output() -> Console:
    """Standard output; a log gets wider lines than the 80 columns that rich assumes."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)


def print_json(value: Any) -> None:
    """One JSON value on standard output; a number that is not finite becomes null, which JSON can say."""
    print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def show(name: str, value: Any) -> None:
    """Print the value of the command `name`."""
    special = {"compress": _compress, "plan": _plan, "try": _try, "methods": _methods, "method": _method}
    output().print(special.get(name, _anything)(_plain(value)))


def _compress(result: Mapping[str, Any]) -> RenderableType:
    """Before and after in one table, then the layers with the largest error, then warnings and where the result is."""
    table = Table(box=box.SIMPLE_HEAD, title=escape(f"{result.get('model')} -> {result.get('out')}"), title_justify="left")
    for heading in ("", "before", "after", "difference"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in _rows(result):
        table.add_row(*map(escape, row))
    facts = {key: result[key] for key in ("bits_per_weight", "seconds", "peak_rss_bytes") if result.get(key) is not None}
    parts: list[RenderableType] = [table, _facts({"recipe": _recipe(result.get("recipe")), **facts})]
    layers = [layer for layer in result.get("layers") or () if isinstance(layer.get("relative_error"), int | float)]
    if layers:
        worst = sorted(layers, key=lambda layer: -layer["relative_error"])[:LAYERS_SHOWN]
        columns = ("name", "method", "bits", "sparsity", "relative_error")
        shown = [{column: layer[column] for column in columns if column in layer} for layer in worst]
        parts.append(_table(shown, f"largest errors of {len(layers)} layers"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.get("warnings") or ()]
    return Group(*parts)


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, before, after, difference) of size, quality and speed."""
    rows = []
    size = result.get("bytes") or {}
    if size.get("before") and size.get("after"):
        rows.append(("size", _size(size["before"]), _size(size["after"]), f"{size['after'] / size['before']:.1%}"))
    perplexity = result.get("perplexity") or {}
    if perplexity.get("before") and perplexity.get("after"):
        before, after = perplexity["before"]["value"], perplexity["after"]["value"]
        rows.append(("perplexity", _interval(perplexity["before"]), _interval(perplexity["after"]), _change(result, before, after)))
    if result.get("kl"):
        rows.append(("KL divergence, nats a token", "", _interval(result["kl"]), ""))
    if result.get("top1_agreement") is not None:
        agreement = result["top1_agreement"]
        rows.append(("same most likely token", "", _interval(agreement) if isinstance(agreement, Mapping) else f"{agreement:.2%}", ""))
    shown = {row[0] for row in rows}
    for entry in result.get("quality") or ():
        if entry.get("metric") not in shown | {"kl", "top1_agreement", "perplexity_ratio"}:
            rows.append((str(entry.get("metric")), *(_number(entry.get(key)) for key in ("before", "after", "difference"))))
    for key, value in (result.get("speed") or {}).items():
        if isinstance(value, Mapping) and {"before", "after"} <= value.keys():
            ratio = value["after"] / value["before"] if value["before"] and value["after"] else None
            rows.append((_words(key), _number(value["before"]), _number(value["after"]), f"{ratio:.2f}x" if ratio else ""))
    return rows


def _change(result: Mapping[str, Any], before: float, after: float) -> str:
    """How much the perplexity rose, with the paired interval where there is one."""
    ratio = next((entry for entry in result.get("quality") or () if entry.get("metric") == "perplexity_ratio"), {})
    if all(isinstance(ratio.get(key), int | float) for key in ("difference", "low", "high")):
        return f"{ratio['difference']:+.2%} [{ratio['low']:+.2%}, {ratio['high']:+.2%}]"
    return f"{after / before - 1:+.2%}" if before and after else ""


def _recipe(recipe: Any) -> str:
    """The steps of a recipe on one line: `awq + gptq (bits 4, group size 32)`."""
    if not isinstance(recipe, Mapping):
        return str(recipe or "")
    steps = []
    for step in recipe.get("steps") or ():
        name = next((key for key in step if key not in RESERVED), "")
        settings = _entry("", step[name]) if name and step[name] else ""
        steps.append(f"{name} ({settings})" if settings else name)
    return " + ".join(steps)


def _plan(plan: Mapping[str, Any]) -> RenderableType:
    """The price as a table with what the memory is made of, then what will be done, then why it cannot be."""
    cost = plan.get("cost") or {}
    rest = {key: value for key, value in plan.items() if key not in ("cost", "refusals", "warnings")}
    sizes = {"peak memory": cost.get("memory"), "disk": cost.get("disk"), "size of the result": cost.get("output")}
    price = {what: _size(count) for what, count in sizes.items() if count is not None}
    if cost.get("seconds") is not None:
        price["time"] = f"{cost['seconds']:.1f} s"
    parts = sorted((cost.get("parts") or {}).items(), key=lambda part: -part[1])
    shown = [{"part of the memory": _words(name), "size": _size(count)} for name, count in parts]
    refusals = [Text(f"refused: {reason}", style="red") for reason in plan.get("refusals") or ()]
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in plan.get("warnings") or ()]
    return Group(_anything(rest), _facts(price), *([_table(shown)] if shown else []), *warnings, *refusals)


def _try(result: Mapping[str, Any]) -> RenderableType:
    """Prompt, then the two answers side by side."""
    sides = [(key, result[key]) for key in ("original", "result") if isinstance(result.get(key), Mapping)]
    if len(sides) < 2:
        return _anything(result)
    grid = Table.grid(expand=True)
    panels = []
    for name, side in sides:
        grid.add_column(ratio=1)
        rest = {key: value for key, value in side.items() if key != "text"}
        panels.append(Panel(Group(Text(str(side.get("text", ""))), "", _facts(rest)), title=name))
    grid.add_row(*panels)
    more = {key: value for key, value in result.items() if key not in ("original", "result", "prompt")}
    parts: list[RenderableType] = [Text(str(result.get("prompt", "")), style="bold"), grid]
    return Group(*parts, _anything(more)) if more else Group(*parts)


def _methods(entries: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Name, place and summary of each method."""
    ordered = sorted(entries, key=lambda entry: (entry["family"], entry["name"]))
    return _table([{key: entry.get(key) for key in ("name", "family", "summary", "paper")} for entry in ordered])


def _method(entry: Mapping[str, Any]) -> RenderableType:
    """One method: explanation, source, and its settings."""
    paper = entry.get("paper")
    if isinstance(paper, Mapping):
        paper = ", ".join(str(value) for value in paper.values() if value is not None)
    head = _facts({"method": entry["name"], "family": entry["family"], "source": paper or "none"})
    settings = [
        {"setting": name, "default": schema.get("default"), "meaning": _constraint(schema)}
        for name, schema in (entry.get("parameters") or {}).items()
    ]
    parts: list[RenderableType] = [head, Markdown(str(entry.get("explanation") or entry.get("summary") or ""))]
    return Group(*parts, _table(settings)) if settings else Group(*parts)


def _constraint(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    parts = [schema.get("description"), schema.get("type")]
    if "enum" in schema:
        parts.append("one of " + ", ".join(map(str, schema["enum"])))
    words = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    parts += [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return ", ".join(str(part) for part in parts if part)


def _anything(value: Any) -> RenderableType:
    """A mapping as facts, lists of mappings in it as tables."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return _table(value)
    if not isinstance(value, Mapping):
        return Text(_number(value))
    tables = {key: item for key, item in value.items() if isinstance(item, list) and item and all(isinstance(row, Mapping) for row in item)}
    facts = {key: item for key, item in value.items() if key not in tables and item not in (None, [], {})}
    return Group(_facts(facts), *(_table(rows, _words(key)) for key, rows in tables.items()))


def _facts(values: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for key, value in values.items():
        if isinstance(value, Mapping) and not {"value", "low", "high"} <= value.keys():
            grid.add_row(escape(_words(key)), _facts(value))
        else:
            grid.add_row(escape(_words(key)), escape(_entry(key, value)))
    return grid


def _table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(_words(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_entry(column, row.get(column))) for column in columns))
    return table


def _entry(key: str, value: Any) -> str:
    """A value in words; the unit is the end of its name."""
    if isinstance(value, Mapping):
        return (
            _interval(value)
            if {"value", "low", "high"} <= value.keys()
            else ", ".join(f"{_words(k)} {_entry(k, v)}" for k, v in value.items())
        )
    if isinstance(value, list):
        return ", ".join(_entry(key, item) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("bytes"):
            return _size(value)
        if key.endswith("seconds"):
            return f"{value:.1f} s"
    return _number(value)


def _words(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _interval(value: Mapping[str, Any]) -> str:
    if value.get("low") is None or value.get("high") is None:
        return _number(value.get("value"))
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _size(count: float) -> str:
    """Bytes in decimal units, as disks and hubs count them."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def _plain(value: Any) -> Any:
    """JSON values of anything that a command returns."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return str(value) if isinstance(value, Path) else value
