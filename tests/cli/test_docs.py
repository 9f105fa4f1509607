"""What the documentation shows works: recipes parse, command lines are understood."""

from __future__ import annotations

import importlib.util
import re
import shlex
import types
from pathlib import Path

import pytest

from thrifty.cli.main import main
from thrifty.recipe.parse import parse_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    return [(page.name, body) for page in PAGES for kind, body in BLOCK.findall(page.read_text()) if kind == language]


LINES = [(page, line) for page, body in blocks("sh") for line in body.splitlines() if line.startswith("thrifty ")]
COMMANDS = [(page, line) for page, line in LINES if not line.startswith("thrifty papers ")]  # these are run in test_papers.py


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 10
    assert len(blocks("yaml")) > 2


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_recipes_parse(page: str, text: str) -> None:
    assert parse_recipe(text).steps


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_command_lines_are_understood(api: types.ModuleType, page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert main([*words, "--json"]) == 0
    if "--recipe" in words and not (recipe := words[words.index("--recipe") + 1]).endswith(".yaml"):
        assert parse_recipe(recipe).steps


def test_the_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    tables = importlib.import_module("tables")
    assert tables.readme() == (ROOT / "README.md").read_text()
    pages = "".join(page.read_text() for page in ROOT.glob("docs/*.md"))
    assert pages.count("<!-- table:") == len(tables.TABLES)
    assert "<!-- table:" not in tables.fill(pages)


def test_every_command_is_documented() -> None:
    from thrifty.cli.main import app

    page = (ROOT / "docs" / "command-line.md").read_text()
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"`thrifty {name}" in page
