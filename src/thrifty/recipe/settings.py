"""Plain values to method objects: a setting that is itself a method is written `name` or `{name: {...}}` and built first."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any

from thrifty.base.errors import InputError
from thrifty.base.method import Method, annotation, build, methods
from thrifty.recipe.reader import read


def build_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method `name` with plain `settings`; settings that are methods are built from the inside out.

    Raises InputError naming the setting, the value and the constraint.
    """
    known = methods().get(name)
    if known is None:
        return build(name, dict(settings))
    fields = {field.name for field in dataclasses.fields(known)}
    given = {key: _convert(value, annotation(known, key), f"{name}: {key}") if key in fields else value for key, value in settings.items()}
    return build(name, given)


def parse_method(source: Any, family: type[Method], label: str) -> Method:
    """The one method of a family that `source` is: a method, its name, inline text as in `kivi: {bits: 4}`, or plain values.

    label: what to call the text in messages. Raises InputError naming the setting and its constraint, or the nearest method.
    """
    value = read(source, label)[0] if isinstance(source, str) else source
    try:
        return _nested(value, family, label)
    except InputError as error:
        raise error if str(error).startswith(label) else InputError(f"{label}: {error}") from None


def merge(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with `changes` laid over them; a nested mapping is merged where both sides speak of the same keys."""
    merged = dict(settings)
    for key, change in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(change, Mapping)
        merged[key] = merge(old, change) if both and old.keys() & change.keys() else change
    return merged


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it: methods built, lists as tuples; anything else is left for the method's own check."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert(value, arguments[0], where)
    if origin in (typing.Union, UnionType):
        return _convert_union(value, arguments, where)
    if isinstance(hint, type) and issubclass(hint, Method):
        return _nested(value, hint, where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
        kinds = [inner] * len(value) if inner is not None else arguments
        return tuple(_convert(item, kind, where) for item, kind in zip(value, kinds, strict=False)) + tuple(value[len(kinds) :])
    return value


def _convert_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None:
        return None
    for choice in choices:
        converted = value if choice is type(None) else _convert(value, choice, where)
        if converted is not value:
            return converted
    return value


def _nested(value: Any, family: type[Method], where: str) -> Method:
    """The method that `value` writes down, which must belong to `family`."""
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise InputError(f"{where} must name one method, as in {_sample(family)}; got {value!r}")
    ((name, settings),) = value.items()
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"{where}: the settings of {name} must be a mapping, as in {{bits: 4}}; got {settings!r}")
    known = methods().get(name)
    if known is None or not issubclass(known, family):
        build(name, {}, family=getattr(family, "family", None))  # names the nearest one that fits
        raise InputError(f"{where} cannot be {name!r}")
    return build_method(name, settings or {})


def _sample(family: type[Method]) -> str:
    fitting = [name for name, known in methods().items() if issubclass(known, family)]
    return f"{{{fitting[0]}: {{}}}}" if fitting else "{name: {}}"
