"""A recipe cut into parts whose steps can share one walk: what changes the structure stands alone, and so does training right after it."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.language import Recipe


@dataclass(frozen=True)
class Part:
    """Some steps of a recipe that follow each other; first: the number of the first of them, counted from 1."""

    recipe: Recipe
    first: int


def parts_of(recipe: Recipe) -> tuple[Part, ...]:
    """The parts of a recipe, in its order; one where all of its steps change matrices."""
    families = [load_methods()[step.method].family for step in recipe.steps]
    begins = [position for position in range(len(families)) if position == 0 or _apart(families, position)]
    ends = [*begins[1:], len(families)]
    return tuple(
        Part(recipe.model_copy(update={"steps": recipe.steps[start:stop]}), start + 1) for start, stop in zip(begins, ends, strict=True)
    )


def _apart(families: list[str], position: int) -> bool:
    """Whether a step begins a new part: next to a structural one, or after what trains the result of one."""
    before = families[position - 1]
    heals = before == "tune" and position > 1 and families[position - 2] == "structure"
    return "structure" in (families[position], before) or heals
