"""What the documentation shows works: recipes parse, command lines are understood."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import types
from pathlib import Path

import pytest

import thrifty
from tests.cli.test_bad_input import add_tokenizer, text
from tests.tiny import tiny
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


ELSEWHERE = ("papers", "--task", "--check")
"""Commands whose own tests run them."""


@pytest.mark.parametrize("name", ["README.md", "getting-started.md", "command-line.md", "certificate.md"])
def test_a_page_can_be_followed_from_its_top(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands one after the other as they stand, on a tiny model that is called MODEL, the one inside the package included."""
    model = add_tokenizer(tiny("llama", tmp_path / "MODEL"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    for file in ("text.txt", "held-out.txt"):
        text(tmp_path / file, 400)
    (tmp_path / "recipe.yaml").write_text("gptq: {bits: 4}\n")
    for folder in ("smaller", "small") if name == "certificate.md" else ("smaller",):
        thrifty.compress(model, "rtn: {}", out=tmp_path / folder, evaluation=str(tmp_path / "text.txt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thrifty.data.load.SAMPLES", {"calibration": 8, "evaluation": 4})
    for module in ("request", "results"):
        monkeypatch.setattr(f"thrifty.api.{module}.default_model", lambda: model)
    commands = [shlex.split(line, comments=True)[1:] for page, line in LINES if page == name]
    ran = [words for words in commands if not any(word in words for word in ELSEWHERE)]
    assert ran
    for words in ran:
        assert main(words) in ((0, 3) if "--max-perplexity-increase" in words else (0,)), words


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
