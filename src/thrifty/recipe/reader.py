"""YAML and JSON text to plain values, strictly: every value knows its line, and what YAML would guess is not guessed.

Only the core schema of YAML 1.2 is read: `true`/`false`, `null`, decimal integers and floats (`1e-4` is a number). `no`, `12:30` and dates
stay text. Keys are text and stand once; anchors, tags, NaN and infinities are refused.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from thrifty.base.errors import InputError

Path = tuple[str | int, ...]

_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, pattern, first in _PLAIN:
        for letter in first:
            table.setdefault("" if letter == "\0" else letter, []).append((f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(text: str, label: str) -> tuple[Any, dict[Path, int]]:
    """The value that `text` holds, and the line (from 1) of each part by its path of keys and positions.

    Raises InputError "<label>, line <n>: ..." for text that is not YAML.
    """
    if text.lstrip().startswith("{"):
        text = text.expandtabs()  # JSON may be indented with tabs, YAML may not
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{label}{line}: this is not YAML, {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{label}: this is not YAML, {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{label}: the text is nested too deeply to be a recipe") from None
    lines: dict[Path, int] = {}
    value = None if node is None else _Converter(label, lines).convert(node, ())
    return value, lines


def write(value: Any) -> str:
    """YAML text that `read` turns into an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


class _Converter:
    """Nodes of one document to plain values."""

    def __init__(self, label: str, lines: dict[Path, int]) -> None:
        self.label = label
        self.lines = lines
        self.seen: set[int] = set()

    def convert(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if id(node) in self.seen:
            raise InputError(f"{self.label}, line {line}: YAML anchors (& and *) are not read; write the value out")
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*path, position)) for position, item in enumerate(node.value)]
        return self._scalar(node, line)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(":str"):
                shown = getattr(key_node, "value", "")
                shown = f"{shown!r} is" if isinstance(shown, str) else "this is"
                raise InputError(f"{self.label}, line {line}: a key must be text, {shown} not; put it in quotes")
            key = key_node.value
            if key in found:
                raise InputError(f"{self.label}, line {line}: {key!r} stands twice; keep one")
            self.lines[(*path, key)] = line
            found[key] = self.convert(value_node, (*path, key))
        return found

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        kind, text = node.tag.rsplit(":", 1)[-1], node.value
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int" and len(text) <= 40:
            return int(text)
        if kind == "float":
            number = float(text.replace(".inf", "inf").replace(".nan", "nan")) if "n" not in text.lower() else math.nan
            if math.isfinite(number):
                return number
        if kind in ("int", "float"):
            raise InputError(f"{self.label}, line {line}: {text[:40]} is not a finite number of a sensible size")
        raise InputError(f"{self.label}, line {line}: YAML tags (!) are not read; write a plain value")
