"""The recipe language as data: what to calibrate on, what to evaluate on, and the steps in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from thrifty.base.store import content_key
from thrifty.recipe.reader import write

RESERVED = ("only", "skip", "override")


def _texts(value: Any) -> Any:
    """One text or a list of texts, as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_texts)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Calibration(_Part):
    """What the statistics are taken from. Whatever is left out is chosen by the model: the embedded text for a language model.

    text: files (plain text, or jsonl with chat messages), hub names or names of embedded texts; one or several.
    images: a folder of images, for vision models.
    samples: number of windows or images; tokens: length of a window.
    """

    text: Words = ()
    images: Annotated[str, Field(min_length=1)] | None = None
    samples: int | None = Field(default=None, ge=1, le=1_000_000)
    tokens: int | None = Field(default=None, ge=2, le=1_000_000)


class Evaluation(_Part):
    """What the result is judged on, against the original. Whatever is left out is chosen as for the calibration.

    text, images, samples, tokens: as for the calibration, and never the same samples.
    stride: windows of text begin so many tokens apart, and each scores what the one before it did not hold; `tokens` apart by default.
    """

    text: Words = ()
    images: Annotated[str, Field(min_length=1)] | None = None
    samples: int | None = Field(default=None, ge=1, le=1_000_000)
    tokens: int | None = Field(default=None, ge=2, le=1_000_000)
    stride: int | None = Field(default=None, ge=1, le=1_000_000)


class Step(_Part):
    """One method, its settings as plain values, and the linears it acts on.

    only, skip: patterns over the paths of linears (`*.down_proj`); a linear is selected by any of `only` and none of `skip`.
    override: (pattern, changed settings) in order; where several match a linear, the later ones win.
    """

    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    only: Words = ()
    skip: Words = ()
    override: tuple[tuple[str, dict[str, Any]], ...] = ()

    def plain(self) -> dict[str, Any]:
        """The step as the recipe language writes it."""
        reserved = {"only": list(self.only), "skip": list(self.skip), "override": dict(self.override)}
        return {self.method: self.settings, **{key: value for key, value in reserved.items() if value}}


class Recipe(_Part):
    """What is to be done to a model, whichever model it is."""

    steps: tuple[Step, ...] = Field(min_length=1)
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()

    def plain(self) -> dict[str, Any]:
        """The recipe as plain JSON values, in the form that the recipe language writes; what is left out is not there."""
        parts = {"calibration": _written(self.calibration), "evaluation": _written(self.evaluation)}
        return {**{key: value for key, value in parts.items() if value}, "steps": [step.plain() for step in self.steps]}

    def to_yaml(self) -> str:
        """Canonical text: parsing it gives an equal recipe."""
        return write(self.plain())

    def with_places(self, place: Callable[[str], str]) -> Recipe:
        """The same recipe with every text and folder of images put through `place`."""

        def moved(part: Any) -> Any:
            images = None if part.images is None else place(part.images)
            return part.model_copy(update={"text": tuple(place(word) for word in part.text), "images": images})

        return self.model_copy(update={"calibration": moved(self.calibration), "evaluation": moved(self.evaluation)})

    def key(self) -> str:
        """A 64-digit key: equal for equal recipes, whatever text they came from. The order of overrides counts."""
        return content_key(self.model_dump(mode="json"))

    def words(self) -> str:
        """The methods in a few words: `awq + gptq`."""
        return " + ".join(step.method for step in self.steps)


def _written(part: _Part) -> dict[str, Any]:
    """The fields of a part that were given; a tuple of one text as that text."""
    found = {}
    for key, value in part.model_dump().items():
        if isinstance(value, tuple):
            value = value[0] if len(value) == 1 else list(value)
        if value is not None and value != []:
            found[key] = value
    return found


__all__ = ["RESERVED", "Calibration", "Evaluation", "Recipe", "Step"]
