"""Pages made from the code: the methods from their classes, the shipped recipes from their files, the options from the program.

mkdocs runs this as a hook; `python docs/generate.py` prints the pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from thrifty.base.method import Method
from thrifty.papers.digest import Issue, markdown
from thrifty.papers.fetch import QUERY
from thrifty.papers.library import SHIPPED, Library
from thrifty.papers.relevance import Judge
from thrifty.papers.status import Statuses
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.parse import shipped, summary

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs runs this file as no part of a package
from tables import fill

PLACES = {
    "weights.preset": "Presets: named points of the algebra of weights",
    "weights.transform": "Transforms: equivalent rewrites before a solve",
    "weights.solve": "Solvers: how the target is reached",
    "weights.target": "Targets: the set a matrix must end up in",
    "weights.allocate": "Allocation: who gets how much",
    "weights.heal": "Healing: what is given back once a block is solved",
    "weights.activation": "Activations: what inputs are rounded to",
    "structure": "Structure: fewer neurons, heads, experts, channels, states and blocks",
    "cache": "Cache: keys and values of past tokens, while a model runs",
    "tune": "Training: all matrices together, after the steps that solve",
    "tune.rates": "Rates: which matrices move faster while they are trained",
}


def methods_page() -> str:
    """Every method, by the place it acts at: a table, then each with its explanation and settings."""
    by_family: dict[str, list[type[Method]]] = {}
    for method in load_methods().values():
        by_family.setdefault(method.family, []).append(method)
    parts = ["# Methods", "This page is made from the classes. `thrifty methods NAME` shows the same in a terminal."]
    order = [*PLACES, *sorted(by_family.keys() - PLACES.keys())]
    for family in (family for family in order if family in by_family):
        parts.append(f"## {PLACES.get(family, family)}")
        rows = [
            f"| [`{method.name}`](#{method.name}) | {_cell(method.summary())} | {_cell(method.paper)} |" for method in by_family[family]
        ]
        parts.append("\n".join(["| name | what it does | source |", "| --- | --- | --- |", *rows]))
        parts += [_method(method) for method in by_family[family]]
    return "\n\n".join(parts) + "\n"


def week_page() -> str:
    """The digest of the newest shipped week; its badges lead to the page of methods."""
    library = Library(Path("nowhere"), SHIPPED)
    day, ids = max(library.digests.items())
    return markdown(Issue.of(day, [library.records[name] for name in ids], Statuses(load_methods().values()), Judge(), docs="../"))


def library_table() -> str:
    """The shipped recipes: name, what they say of themselves, text."""
    parts = []
    for name, text in shipped().items():
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        parts.append(f"### {name}\n\n{summary(text)}\n\n```yaml\n{body}\n```")
    return "\n\n".join(parts)


def _method(method: type[Method]) -> str:
    lines = [f"### {method.name} {{ #{method.name} }}", "```text\n" + method.explanation() + "\n```"]
    rows = [f"| `{name}` | {_cell(_kind(schema))} | `{schema.get('default')}` |" for name, schema in method.parameters().items()]
    if rows:
        lines.append("\n".join(["| setting | kind | default |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(lines)


def _kind(schema: dict[str, Any]) -> str:
    words = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    choices = ["one of " + ", ".join(f"`{choice}`" for choice in schema["enum"])] if "enum" in schema else []
    return ", ".join([str(schema.get("type", "")), *choices, *limits]).strip(", ")


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs hook: add the page of methods and the digest of the shipped week."""
    files.append(File.generated(config, "methods.md", content=methods_page()))
    files.append(File.generated(config, "week.md", content=week_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs hook: put the shipped recipes, the query of papers and the tables of results where a page asks for them."""
    query = f"```yaml\n{QUERY.read_text(encoding='utf-8')}```"
    return fill(markdown.replace("<!-- shipped recipes -->", library_table()).replace("<!-- query -->", query))


if __name__ == "__main__":
    print(methods_page())
    print(library_table())
