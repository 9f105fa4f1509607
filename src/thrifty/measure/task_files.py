"""A user's own tasks: YAML files in the format of lm-eval, with their data beside them.

A path of data that a file names is looked up beside that file first, then in the working folder. A file without `task` and without
`group` is a template that others include. A file may name Python functions (`!function module.name`), which lm-eval runs.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from thrifty.base.errors import InputError
from thrifty.base.store import as_path

SUFFIXES = (".yaml", ".yml")
LOCAL_FORMATS = ("json", "csv", "text", "parquet", "arrow")


class _Loader(yaml.SafeLoader):
    """YAML as lm-eval reads it; the names of functions stay text here."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@dataclass(frozen=True)
class TaskFile:
    """One file. settings: what it says, with what it includes, and the paths of its data as they are on disk."""

    path: Path
    settings: Mapping[str, Any]

    @property
    def is_group(self) -> bool:
        """Whether it names other tasks instead of being one."""
        return "group" in self.settings

    @property
    def name(self) -> str:
        """The name of the task or the group."""
        return str(self.settings["group" if self.is_group else "task"])

    def members(self) -> Iterator[str]:
        """The names of the tasks of a group, those of groups inside it too."""
        yield from _members(self.settings.get("task")) if self.is_group else ()

    def tags(self) -> Iterator[str]:
        """The names under which it can be asked for together with others."""
        tags = self.settings.get("tag") or ()
        yield from map(str, [tags] if isinstance(tags, str) else tags)

    def wrapper(self) -> str:
        """A file that includes this one and says where its data are."""
        found = {key: self.settings[key] for key in ("dataset_path", "dataset_kwargs") if key in self.settings}
        return yaml.safe_dump({"include": str(self.path), **found})


def is_path(word: str) -> bool:
    """Whether a word can only be meant as a file or a folder."""
    return word.endswith(SUFFIXES) or "/" in word or word.startswith((".", "~"))


def read_files(word: str) -> list[TaskFile]:
    """The task file of that name, or all of a folder and the folders in it.

    Raises InputError, naming the file, for one that is missing or is no task.
    """
    place = as_path(word)
    if place.is_dir():
        paths = sorted(path.resolve() for suffix in SUFFIXES for path in place.rglob(f"*{suffix}") if not _hidden(path, place))
        parsed = (path for path in paths if isinstance(_parse(path, ()), dict))
        files = [TaskFile(path, settings) for path in parsed if names_task(settings := read_settings(path))]
        if not files:
            raise InputError(f"{word} holds no task: none of the YAML files in it says `task: NAME`")
        return files
    if not place.is_file():
        raise InputError(f"there is no task file {word}; check the path")
    settings = read_settings(place.resolve())
    if not names_task(settings):
        raise InputError(f"{word} names no task; it needs a line `task: NAME`, as lm-eval's guide to new tasks shows")
    return [TaskFile(place.resolve(), settings)]


def neighbours(file: TaskFile) -> list[TaskFile]:
    """The other tasks in the folder of a group, which it may name; files that cannot be read are left out."""
    found = []
    for path in sorted(path for suffix in SUFFIXES for path in file.path.parent.glob(f"*{suffix}")):
        try:
            settings = read_settings(path)
        except InputError:
            continue
        if path != file.path and names_task(settings):
            found.append(TaskFile(path, settings))
    return found


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def names_task(settings: Mapping[str, Any]) -> bool:
    """Whether these are the settings of a task or a group, not of a template."""
    return any(isinstance(settings.get(key), str) and settings[key] for key in ("task", "group"))


def read_settings(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a task file says, with what it includes; own settings come before included ones.

    Raises InputError for a file that is missing, is not YAML, includes itself, or names data that are not there.
    """
    if path in including:
        raise InputError(f"{path} includes itself, by way of {including[-1]}; take one of the two includes out")
    own = _parse(path, including)
    if not isinstance(own, dict):
        raise InputError(f"{path}{_included(including)} is no task file; it must hold settings such as `task: NAME`")
    settings: dict[str, Any] = {}
    includes = own.pop("include", None) or []
    for word in includes if isinstance(includes, list) else [includes]:
        settings |= read_settings((path.parent / str(word)).resolve(), (*including, path))
    settings |= _beside(own, path.parent)
    if not including:
        _check_data(settings, path)
    return settings


def _parse(path: Path, including: tuple[Path, ...]) -> Any:
    said = _included(including)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InputError(f"{path}{where}: not valid YAML, {problem}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8, so it is no task file{said}") from error
    except OSError as error:
        raise InputError(f"the task file {path}{said} cannot be read: {error.strerror or error}") from error


def _included(including: tuple[Path, ...]) -> str:
    return f", which {including[-1]} includes" if including else ""


def _members(listed: Any) -> Iterator[str]:
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and "group" in item:
            yield from _members(item["task"]) if isinstance(item.get("task"), list) else (str(item["group"]),)
        elif isinstance(item, dict) and isinstance(item.get("task"), str) and "dataset_path" not in item:
            yield item["task"]


# -- data beside the file ----------------------------------------------------------------------------------------------


def _beside(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with every path of data that lies beside the file written out."""
    found = dict(settings)
    path, kwargs = found.get("dataset_path"), found.get("dataset_kwargs")
    if isinstance(path, str) and path not in LOCAL_FORMATS and (folder / path).exists():
        found["dataset_path"] = str(folder / path)
    if isinstance(kwargs, dict):
        found["dataset_kwargs"] = {
            key: _each(value, lambda word: _place(word, folder)) if key in ("data_files", "data_dir") else value
            for key, value in kwargs.items()
        }
    return found


def _each(value: Any, change: Any) -> Any:
    """`change` applied to a text, or to every text in lists and mappings."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    return {key: _each(item, change) for key, item in value.items()} if isinstance(value, dict) else value


def _place(word: str, folder: Path) -> str:
    there = str(folder / word)
    return there if "://" not in word and _exists(there) else word


def _exists(word: str) -> bool:
    return Path(word).exists() or bool(glob.glob(word, recursive=True))


def _check_data(settings: Mapping[str, Any], path: Path) -> None:
    kwargs = settings.get("dataset_kwargs")
    if settings.get("dataset_path") not in LOCAL_FORMATS or not isinstance(kwargs, dict):
        return
    words: list[str] = []
    _each(kwargs.get("data_files"), words.append)
    for word in words:
        if "://" not in word and not _exists(word):
            raise InputError(f"{path} names the data file {word}, which is not there; paths are looked up in {path.parent}")
