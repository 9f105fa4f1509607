"""What a method is: a frozen dataclass of hyperparameters with one public verb.

A class becomes a method by giving `name`. It then stands in `methods()`; the recipe language, the documentation, the catalogue and
the contract tests all read that list, and no second one is kept. Constraints are declared in the annotations
(`Annotated[int, Field(ge=2, le=8)]`) and checked here for every method.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
from functools import cache
from typing import Any, ClassVar, Literal, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from thrifty.base.errors import InputError

Need = Literal["gram", "absolute_mean", "absolute_max", "range"]


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a method comes from. part: what of it the method does, where that is not all."""

    authors: str
    year: int
    title: str
    arxiv: str | None = None
    part: str | None = None

    def __str__(self) -> str:
        where = f", arXiv {self.arxiv}" if self.arxiv else ""
        of_it = f"; of it {self.part}" if self.part else ""
        return f"{self.authors} ({self.year}), {self.title}{where}{of_it}"


_registered: dict[str, type[Method]] = {}


class Method:
    """Base of every method.

    name: the word a recipe uses. family: the place it acts at (`weights.solve`, `weights.transform`, ...), set by the family's base.
    paper: its source. needs: the statistics it reads (`gram` is always there).
    """

    name: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return
        twin = _registered.get(cls.name)
        if twin is not None and (twin.__module__, twin.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"two methods are called {cls.name!r}: {twin.__module__} and {cls.__module__}")
        _registered[cls.name] = cls

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A field declared as a family (`by: Solver`) takes any method of it; a concrete method is described by its fields."""
        return handler(source) if "name" in cls.__dict__ else core_schema.is_instance_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) if "name" in cls.__dict__ else {"type": "method", "family": getattr(cls, "family", "")}

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Settings that the shared contract tests run on every architecture."""
        return (cls(),)

    @classmethod
    def summary(cls) -> str:
        """The first line of the method's module docstring."""
        module = inspect.getmodule(cls)
        return (inspect.getdoc(module) or "").split("\n", 1)[0].strip()

    @classmethod
    def explanation(cls) -> str:
        """The whole module docstring: what it does, the objective as a formula, the source."""
        return inspect.getdoc(inspect.getmodule(cls)) or ""

    @classmethod
    def parameters(cls) -> dict[str, dict[str, Any]]:
        """The JSON schema of each hyperparameter, defaults included."""
        properties = {name: dict(schema) for name, schema in _adapter(cls).json_schema().get("properties", {}).items()}
        for field in dataclasses.fields(cls):
            if isinstance(field.default, Method | tuple):
                properties[field.name]["default"] = _plain(field.default)
        return properties

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain JSON values."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def methods() -> dict[str, type[Method]]:
    """Every method defined so far, by name. Import the families first (`thrifty.pipeline.catalogue.load_methods`)."""
    return dict(sorted(_registered.items()))


def build(name: str, settings: dict[str, Any], family: str | None = None) -> Method:
    """The method called `name` with `settings`; family restricts the choice (`weights.solve`).

    Raises InputError naming the nearest method for an unknown name, the family of one that belongs to another, and the field, the value and
    the constraint for a bad setting.
    """
    known = {key: cls for key, cls in methods().items() if family is None or cls.family == family}
    if name not in known and name in methods():
        raise InputError(f"{name!r} is one of {methods()[name].family}; here goes one of {family}: {', '.join(known)}")
    if name not in known:
        raise InputError(f"unknown method {name!r}{nearest(name, known)}; `thrifty methods` lists them all")
    cls = known[name]
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in settings:
        if key not in fields:
            allowed = ", ".join(sorted(fields)) or "none"
            raise InputError(f"{name} has no setting {key!r}{nearest(key, fields)}; its settings are: {allowed}")
    try:
        return cls(**settings)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error


def nearest(word: str, known: Any) -> str:
    """` (did you mean 'x'?)`, or nothing when no known word is close."""
    close = difflib.get_close_matches(str(word), [str(item) for item in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check(method: Method) -> None:
    """Check the fields of a method against their annotations.

    Raises InputError: "gptq: bits must be ..., got ...".
    """
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    for field, adapter in _field_adapters(type(method)).items():
        try:
            adapter.validate_python(values[field], strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            message = problem[0].lower() + problem[1:]
            raise InputError(f"{type(method).name}: {field} is wrong, {message}; got {values[field]!r}") from None


@cache
def _adapter(cls: type[Method]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


@cache
def _field_adapters(cls: type[Method]) -> dict[str, TypeAdapter[Any]]:
    return {field.name: TypeAdapter(annotation(cls, field.name)) for field in dataclasses.fields(cls)}


def annotation(cls: type[Method], name: str) -> Any:
    """What the field `name` is declared as, evaluated in the module that declares it."""
    for owner in cls.__mro__:
        written = inspect.get_annotations(owner).get(name)
        if written is not None:
            return eval(written, vars(sys.modules[owner.__module__])) if isinstance(written, str) else written
    raise AttributeError(f"{cls.__name__} has no field {name!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return {value.name: value.settings()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
