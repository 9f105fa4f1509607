"""Text to a recipe. Everything that can be known to be wrong without a model is refused here, with its place in the text."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from thrifty.base.errors import InputError
from thrifty.base.method import nearest
from thrifty.base.store import as_path, is_folder
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.language import RESERVED, Calibration, Evaluation, Recipe, Step
from thrifty.recipe.reader import read
from thrifty.recipe.settings import build_method, merge

TOP = ("calibration", "evaluation", "steps")
# Methods of these families are parts of a step, not steps; those of the last one act while a model runs.
PARTS = ("weights.solve", "weights.target", "weights.allocate", "weights.heal", "weights.activation", "tune.rates", "cache")


def shipped() -> dict[str, str]:
    """The recipes that come with the package: text by name."""
    folder = importlib.resources.files("thrifty.recipe") / "library"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda item: item.name.removesuffix(".yaml"))
    return {item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8") for item in files}


def summary(text: str) -> str:
    """What a shipped recipe says of itself: its leading comment."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def recipes(name: str | None = None) -> list[dict[str, str]] | dict[str, str]:
    """The recipes that come with the package: {name, summary, text}, by name; or the one called `name`.

    Raises InputError for a name that no recipe has.
    """
    library = shipped()
    if name is None:
        return [{"name": key, "summary": summary(text), "text": text} for key, text in library.items()]
    if name not in library:
        raise InputError(f"there is no recipe called {name!r}{nearest(name, library)}; `thrifty recipes` lists them")
    return {"name": name, "summary": summary(library[name]), "text": library[name]}


def parse_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """The recipe that `source` is: a file, the name of a shipped recipe, inline text (`gptq: {bits: 4}`), or plain values.

    A mapping without `steps` is taken as a single step. Raises InputError naming file, line, step, setting and the nearest known word.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return _Parser("recipe", {}).recipe(source)
    text, label = _find(source)
    value, lines = read(text, label)
    recipe = _Parser(label, lines if "\n" in text.strip() else {}).recipe(value)
    return recipe.with_places(lambda word: _beside(word, as_path(label).parent)) if _is_file(label) else recipe


def complete(recipe: Recipe) -> Recipe:
    """The same recipe with every setting of every step written out, so that it means the same under other defaults."""
    load_methods()
    steps = tuple(step.model_copy(update={"settings": build_method(step.method, step.settings).settings()}) for step in recipe.steps)
    return recipe.model_copy(update={"steps": steps})


def _find(source: str | Path) -> tuple[str, str]:
    """The text of a recipe and what to call it in messages."""
    library = shipped()
    if isinstance(source, str):
        if source in library:
            return library[source], f"recipe {source}"
        if not source.strip():
            raise InputError("the recipe is empty; name a file, one of `thrifty recipes`, or write one, as in 'gptq: {bits: 4}'")
        if any(mark in source for mark in ":{\n") and not _is_file(source):
            return source, "recipe"
        if source in load_methods():
            return f"{source}: {{}}", "recipe"
    path = as_path(source)
    if is_folder(path):
        raise InputError(f"{path} is a folder; name a recipe file in it, as in {path / 'recipe.yaml'}")
    if not _is_file(path):
        if path.suffix or "/" in str(source):
            raise InputError(f"there is no recipe file {path}; check the path, or see `thrifty recipes` for the ones that come along")
        hint = nearest(str(source), [*library, *load_methods()])
        raise InputError(f"there is no recipe called {str(source)!r}{hint}; `thrifty recipes` lists them, a file is named by its path")
    return _read_file(path), str(path)


def _beside(word: str, folder: Path) -> str:
    """A text that is not found from here but beside the recipe's file, by its path from here."""
    try:
        return str(folder / word) if not as_path(word).exists() and (folder / word).exists() else word
    except OSError:
        return word


def _is_file(path: str | Path) -> bool:
    try:
        return as_path(path).is_file()
    except (OSError, ValueError):  # an inline text may be no possible file name
        return False


def _read_file(path: Path) -> str:
    try:
        if path.stat().st_size > 1_000_000:
            raise InputError(f"{path} is larger than 1 MB and cannot be a recipe")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text, so it cannot be a recipe") from None
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); check its permissions") from None


@dataclass(frozen=True)
class _Parser:
    """Plain values of one text to a recipe; knows where each value stood."""

    label: str
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)

    def fail(self, path: tuple[str | int, ...], message: str) -> InputError:
        """The error for the value at `path`: its line (that of the nearest part that has one), then what is wrong."""
        line = next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), None)
        place = self.label if line is None else f"{self.label}, line {line}"
        return InputError(f"{place}: {message}")

    def recipe(self, value: Any) -> Recipe:
        if value is None or value == {}:
            raise self.fail((), "the recipe is empty; it needs steps, as in 'steps: [{gptq: {bits: 4}}]'")
        if isinstance(value, list):
            raise self.fail((), "a recipe is a mapping, not a list; write 'steps:' above the list")
        if not isinstance(value, Mapping):
            raise self.fail((), f"a recipe is a mapping, as in 'gptq: {{bits: 4}}' (mind the space after the colon); got {value!r}")
        if not any(key in TOP for key in value) and not self._misspelled(value):
            return Recipe(steps=(self.step(value, (), 1),))
        for key in value:
            if key not in TOP:
                raise self.fail((key,), f"unknown key {key!r}{nearest(key, TOP)}; a recipe has {', '.join(TOP)}")
        steps = value.get("steps")
        if not isinstance(steps, list | tuple) or not steps:
            raise self.fail(("steps",), "a recipe needs steps, a list with at least one method, as in 'steps: [{gptq: {bits: 4}}]'")
        return Recipe(
            calibration=self.part(Calibration, value.get("calibration"), ("calibration",)),
            evaluation=self.part(Evaluation, value.get("evaluation"), ("evaluation",)),
            steps=tuple(self.step(step, ("steps", position), position + 1) for position, step in enumerate(steps)),
        )

    def _misspelled(self, value: Mapping[str, Any]) -> bool:
        """Whether a mapping without any known key looks like a whole recipe rather than a single step: it holds a list of mappings."""
        return any(isinstance(item, list) and item and all(isinstance(entry, Mapping) for entry in item) for item in value.values())

    def part(self, model: type[BaseModel], value: Any, path: tuple[str | int, ...]) -> Any:
        """`calibration` or `evaluation`; a text alone is its `text`."""
        if value is None:
            return model()
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, Mapping):
            raise self.fail(path, f"{path[0]} must be a mapping, as in {{text: FILE, samples: 128, tokens: 512}}; got {value!r}")
        for key in value:
            if key not in model.model_fields:
                allowed = ", ".join(model.model_fields)
                raise self.fail(
                    (*path, key), f"{path[0]} has no setting {key!r}{nearest(key, model.model_fields)}; its settings are: {allowed}"
                )
        try:
            return model(**value)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            message = first["msg"][0].lower() + first["msg"][1:]
            raise self.fail((*path, name), f"{path[0]}: {name} is wrong, {message}; got {value.get(name)!r}") from None

    def step(self, value: Any, path: tuple[str | int, ...], number: int) -> Step:
        at = f"step {number}"
        if isinstance(value, str):
            raise self.fail(path, f"{at} is the text {value!r}; write '{value.split(':')[0]}: {{}}'")
        if not isinstance(value, Mapping):
            raise self.fail(path, f"{at} must be a mapping with one method, as in 'gptq: {{bits: 4}}'; got {value!r}")
        name = self._method_key(value, path, at)
        settings = self._settings(value[name], (*path, name), f"{at}: the settings of {name}")
        self._build(name, settings, (*path, name), at)
        overrides = self._overrides(value.get("override"), (*path, "override"), at)
        for pattern, changes in overrides:
            self._build(name, merge(settings, changes), (*path, "override", pattern), f"{at}, override {pattern!r}", changes)
        patterns = {key: self._patterns(value.get(key), (*path, key), at, key) for key in ("only", "skip")}
        return Step(method=name, settings=settings, override=overrides, **patterns)

    def _method_key(self, value: Mapping[str, Any], path: tuple[str | int, ...], at: str) -> str:
        """The one key of a step that is not reserved."""
        known = load_methods()
        others = [key for key in value if key not in RESERVED]
        named = [key for key in others if key in known]
        if len(named) > 1:
            raise self.fail((*path, named[1]), f"{at} names {len(named)} methods ({', '.join(named)}); write one step for each")
        if not others:
            raise self.fail(path, f"{at} names no method; it needs one key beside {', '.join(RESERVED)}, as in 'gptq: {{bits: 4}}'")
        if named and len(others) > 1:
            wrong = next(key for key in others if key not in known)
            words = ", ".join(RESERVED)
            message = f"{at} ({named[0]}) has an unknown key {wrong!r}{nearest(wrong, RESERVED)}; beside its method a step has {words}"
            raise self.fail((*path, wrong), message)
        name = others[0]
        standing = [key for key, method in known.items() if method.family not in PARTS]
        if not named:
            hint = nearest(name, [*standing, *RESERVED, *(() if path else TOP)])
            raise self.fail((*path, name), f"{at}: unknown method {name!r}{hint}; `thrifty methods` lists them all")
        if name not in standing and known[name].family == "cache":
            uses = f"`thrifty try DIR --cache {name}`, `thrifty.kv_cache(model, {name!r})`"
            raise self.fail(
                (*path, name), f"{at}: {name} packs the cache of a model that runs, it changes no weights; use it there: {uses}"
            )
        if name not in standing:
            example = "solve: {by: obs, into: {int: {bits: 4}}}"
            if known[name].family == "weights.allocate":
                example = f"solve: {{by: obs, into: {{int: {{group_size: 0, symmetric: false}}}}, share: {name}}}"
            elif known[name].family == "weights.activation":
                example = f"gptq: {{bits: 8, group_size: 0, activation: {name}}}"
            elif known[name].family == "weights.heal":
                example = f"solve: {{by: descent, into: {{int: {{bits: 2}}}}, heal: {name}}}"
            elif known[name].family == "tune.rates":
                example = f"distill: {{rates: {name}}}"
            message = f"{at}: {name} is a part of a step ({known[name].family}), not a step; write {example}"
            raise self.fail((*path, name), message)
        return name

    def _settings(self, value: Any, path: tuple[str | int, ...], what: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.fail(path, f"{what} must be a mapping, as in {{bits: 4}}; got {value!r}")
        return dict(value)

    def _overrides(self, value: Any, path: tuple[str | int, ...], at: str) -> tuple[tuple[str, dict[str, Any]], ...]:
        overrides = self._settings(value, path, f"{at}: override")
        return tuple(
            (pattern, self._settings(changes, (*path, pattern), f"{at}: override {pattern!r}")) for pattern, changes in overrides.items()
        )

    def _patterns(self, value: Any, path: tuple[str | int, ...], at: str, key: str) -> tuple[str, ...]:
        patterns = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(patterns, list | tuple) or not all(isinstance(item, str) and item for item in patterns):
            raise self.fail(path, f"{at}: {key} must be a pattern or a list of patterns, as in ['*.down_proj']; got {value!r}")
        return tuple(patterns)

    def _build(
        self, name: str, settings: Mapping[str, Any], path: tuple[str | int, ...], at: str, at_fault: Mapping[str, Any] | None = None
    ) -> None:
        """Build the method once, only to learn whether its settings can be right."""
        try:
            build_method(name, settings)
        except InputError as error:
            guilty = next(
                (key for key in (settings if at_fault is None else at_fault) if f" {key} " in f" {error} ".replace("'", " ")), None
            )
            raise self.fail(path if guilty is None else (*path, guilty), f"{at}: {error}") from None
